"""The record of a search: ``trials.jsonl``, one line per trial, written once and never changed.

A search that is killed is rebuilt by replaying it: the values that it holds are told to the searcher again in the
order of the trials, and only what is missing is run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.search.points import Point
from boom_ray.stores.mirrors import send

FILE = "trials.jsonl"


@dataclass(frozen=True)
class Trial:
    """One line.

    Attributes:
        number: from 0, in the order in which the searcher asked for them; ties of the value go to the lower one.
        point: what was merged; None where the proposal was none (all weights zero) or is not a merge's (ratios).
        parameters: what the searcher proposed, in its own terms: what it is told again after a kill.
        value: of the objective, lower is better; None for a trial that failed or gave no number.
        by_dataset: the objective dataset by dataset, in its own sign.
        rung: which subset of the rows it saw, 0 the smallest; None where all trials see all rows.
        rows: that it was judged on.
        seconds: by what took them (apply, encode, score ..) and ``total``.
        code: version of the code; error: why there is no value.
        score: mean metric of the task types on the same rows, 0..1, higher is better, where there is one.
    """

    number: int
    searcher: str
    point: Point | None
    parameters: Mapping[str, Any]
    value: float | None
    by_dataset: Mapping[str, float] = field(default_factory=dict)
    rung: int | None = None
    rows: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    code: str = ""
    error: str | None = None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything that JSON can say: a value that is not finite is None, and is left out of ``by_dataset``."""
        finite = self.value is not None and math.isfinite(self.value)
        raw = asdict(self) | {"point": self.point.to_json() if self.point else None}
        raw["value"] = self.value if finite else None
        raw["score"] = self.score if self.score is not None and math.isfinite(self.score) else None
        raw["by_dataset"] = {name: v for name, v in self.by_dataset.items() if math.isfinite(v)}
        if not finite and self.error is None:
            raw["error"] = "the objective is not a finite number"
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Trial:
        """Read what :meth:`to_json` wrote; keys that are not known are refused (TypeError)."""
        point = None if raw["point"] is None else Point.from_json(raw["point"])
        return cls(**{**raw, "point": point, "number": int(raw["number"])})


class TrialLog:
    """An append-only file of trials. One process writes it; any may read it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, trial: Trial) -> None:
        """Add one line and see it on the disk; a line that a kill cut is removed first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(trial.to_json(), allow_nan=False) + "\n"
        with open(self.path, "ab+") as stream:
            whole = _whole(stream)
            stream.truncate(whole)
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
        send(self.path)

    def read(self) -> list[Trial]:
        """All trials in the order of the file; none where there is no file. A cut last line is dropped.

        Raises:
            BoomError: another line is broken; names it.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was cut
        except FileNotFoundError:
            return []
        return [self._parse(number, line) for number, line in enumerate(lines, 1)]

    def replay(self) -> list[Trial]:
        """All trials by number, then rung, each once.

        Raises:
            BoomError: a broken line; two lines of one trial and rung that differ in what was tried or found.
        """
        found: dict[tuple[int, int], Trial] = {}
        for trial in self.read():
            place = (trial.number, -1 if trial.rung is None else trial.rung)
            other = found.setdefault(place, trial)
            if (other.parameters, other.value) != (trial.parameters, trial.value):
                raise BoomError(f"{self.path}: trial {trial.number} stands there twice, with different results.")
        return [found[place] for place in sorted(found)]

    def write_sorted(self, target: Path) -> None:
        """The replayed trials as a new file: what the finished search keeps, whatever was killed on its way."""
        lines = [json.dumps(trial.to_json(), allow_nan=False) + "\n" for trial in self.replay()]
        target.write_text("".join(lines), encoding="utf-8")

    def _parse(self, number: int, line: bytes) -> Trial:
        try:
            return Trial.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, BoomError) as error:
            raise BoomError(
                f"{self.path}:{number} is no trial ({error}). Only a last line may be cut: restore the file, or delete "
                "it to search again."
            ) from None


def best_trial(trials: Iterable[Trial]) -> Trial:
    """The lowest value among the trials of the highest rung; ties go to the lower number, a NaN never wins.

    Raises:
        BoomError: every trial failed.
    """
    finished = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    if not finished:
        raise BoomError("every trial of the search failed: no finite objective. The errors stand in trials.jsonl.")
    top = max(-1 if trial.rung is None else trial.rung for trial in finished)
    last = [trial for trial in finished if (-1 if trial.rung is None else trial.rung) == top]
    return min(last, key=lambda trial: (trial.value, trial.number))


def spent_seconds(trials: Sequence[Trial]) -> float:
    """Device-seconds of all trials."""
    return math.fsum(trial.seconds.get("total", 0.0) for trial in trials)


def _whole(stream: Any) -> int:
    """Bytes up to the end of the last whole line."""
    size = stream.seek(0, os.SEEK_END)
    end = size
    while end > 0:
        start = max(0, end - 4096)
        stream.seek(start)
        cut = stream.read(end - start).rfind(b"\n")
        if cut >= 0:
            return start + cut + 1
        end = start
    return 0
