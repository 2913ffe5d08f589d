"""Ray's Jobs API, with time limits and errors that tell what passes from what stays."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from boom_ray.cluster.follow import Away, State
from boom_ray.config import BoomError
from boom_ray.exit_codes import Infrastructure

_TIMEOUT = (5.0, 30.0)  # seconds to connect, and between two bytes of an answer
_RUN = "boom_ray_run"  # in a job's metadata: the run that it carries out
_STOP_SECONDS = 60  # between SIGTERM and SIGKILL when a job is stopped: members write checkpoints


class _Client(JobSubmissionClient):
    """Ray's own waits for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_TIMEOUT, **options)


class ClusterJobs:
    """The jobs of one cluster; blocking but for :meth:`tail`."""

    def __init__(self, address: str) -> None:
        """
        Raises:
            BoomError: the cluster wants a token, or another one.
            Infrastructure: nothing answers there.
        """
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        self._address = address
        try:
            self._client = self._called(lambda: _Client(address))
        except Away as error:
            raise Infrastructure(
                f"no Ray dashboard answers at {address} ({error}). On the head it listens on 127.0.0.1 alone: forward "
                f"its port (`ray dashboard CLUSTER.yaml`, kubectl port-forward, ssh -L 8265:127.0.0.1:8265)."
            ) from None

    def running(self, run: str) -> str | None:
        """The job that carries out this run now, or will."""
        for job in self._called(self._client.list_jobs):
            if (job.metadata or {}).get(_RUN) == run and job.submission_id and not job.status.is_terminal():
                return str(job.submission_id)
        return None

    def submit(self, job: str, entrypoint: str, folder: Path, run: str) -> None:
        """Start a job in a copy of ``folder``; one of this name that is there already is that job."""
        runtime = {"working_dir": str(folder), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}}

        def call() -> None:
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=job, runtime_env=runtime, metadata={_RUN: run}
                )
            except RuntimeError as error:
                if "already exists" not in str(error):  # an answer that was lost on its way
                    raise

        self._called(call)

    def state(self, job: str) -> State:
        """
        Raises:
            Infrastructure: the cluster does not know the job: it is another one by now.
        """
        told = self._called(lambda: self._client.get_job_info(job))
        return State(JobStatus(told.status).value, told.driver_exit_code, told.message or "")

    def log(self, job: str) -> str:
        return str(self._called(lambda: self._client.get_job_logs(job)))

    async def tail(self, job: str) -> AsyncIterator[str]:
        try:
            async with aclosing(self._client.tail_job_logs(job)) as pieces:
                async for piece in pieces:
                    yield piece
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise Away(_line(error)) from None

    def _called(self, call: Any) -> Any:
        """The answer.

        Raises:
            Away: none came, or the server has a weak moment.
            BoomError: it refuses.
            Infrastructure: the job is not known.
        """
        try:
            return call()
        except AuthenticationError as error:
            raise BoomError(_refused(self._address, str(error))) from None
        except (requests.RequestException, OSError) as error:
            raise Away(_line(error)) from None
        except RuntimeError as error:
            status = re.search(r"status code (\d+)", str(error))
            if status is None or int(status[1]) >= 500 or int(status[1]) in (408, 429):
                raise Away(_line(error)) from None
            if int(status[1]) == 404:
                raise Infrastructure(
                    f"the cluster at {self._address} does not know the job: it was started anew. Submit again: the "
                    f"run goes on from what its run directory holds."
                ) from None
            raise BoomError(f"{self._address} refuses: {_line(error)}") from None


def _refused(address: str, text: str) -> str:
    how = "the cluster's token is another one" if "invalid" in text.lower() else "no token was sent"
    return (
        f"{address} refuses: {how}. Set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_TOKEN; "
        f"`ray get-auth-token` on its head prints it."
    )


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:200]
