"""A cloud's notice is read as its metadata service says it, and handed on once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from boom_ray.cluster.spot_notice import asked_aws, asked_gcp, watch


class Metadata:
    """Both clouds' services on 127.0.0.1; ``notice`` is when the machine goes, None while it stays."""

    def __init__(self) -> None:
        self.notice: datetime | None = None
        self.refused: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self._answer(200 if known else 404, "secret")

            def do_GET(self) -> None:
                if self.path == "/latest/meta-data/spot/instance-action":
                    if self.headers["X-aws-ec2-metadata-token"] != "secret":
                        return self._answer(401, "")
                    if service.notice is None:
                        return self._answer(404, "")
                    told = {"action": "terminate", "time": service.notice.strftime("%Y-%m-%dT%H:%M:%SZ")}
                    return self._answer(200, json.dumps(told))
                google = self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"]
                return self._answer(200 if google else 403, "TRUE" if service.notice else "FALSE")

            def _answer(self, code: int, text: str) -> None:
                if code in (401, 403):
                    service.refused.append(self.path)
                self.send_response(code)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()
    thread = threading.Thread(target=service.server.serve_forever, daemon=True)
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    assert service.refused == []


def test_aws_says_the_moment(metadata):
    assert asked_aws(metadata.host) is None
    metadata.notice = datetime.now(UTC) + timedelta(seconds=120)
    seconds = asked_aws(metadata.host)
    assert seconds is not None
    assert 115 < seconds <= 120
    metadata.notice = datetime.now(UTC) - timedelta(seconds=9)
    assert asked_aws(metadata.host) == 0


def test_google_gives_half_a_minute(metadata):
    assert asked_gcp(metadata.host) is None
    metadata.notice = datetime.now(UTC)
    assert asked_gcp(metadata.host) == 30


def test_a_machine_without_metadata_has_no_notice(metadata):
    metadata.server.shutdown()
    metadata.server.server_close()
    assert asked_aws(metadata.host) is None
    assert asked_gcp(metadata.host) is None


def test_a_notice_is_handed_on_once():
    answers, drained = iter([None, None, 12.0, 3.0]), list[float]()
    assert watch(lambda: next(answers), drained.append, every=0) == 12
    assert drained == [12]
