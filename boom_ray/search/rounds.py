"""A search's script behind Ray Tune's searcher interface, with the log of its trials.

Tune tells a searcher what ends in the order in which it happens to end. Here everything that a script asks for
together is told together, in the script's order, when the last of it has ended; what the log knows is not run again.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from ray.tune.search import Searcher

from boom_ray.config import BoomError
from boom_ray.search.points import Point
from boom_ray.search.searchers import Asked, Result, Script
from boom_ray.search.trial_log import Trial, TrialLog

VALUE = "objective"  # the name of the value among a trial's results
_RETRIES = 2  # of a judgement whose process ended: it is made again by another actor
_DIED = "the trial's process ended, again and again, or its code raised: see scratch/tune in the run directory"


@dataclass
class Records:
    """Where judgements are kept: trials in one file, members and baselines in another. ``told`` hears each new one,
    ``say`` what people should know once."""

    trials: TrialLog
    others: TrialLog
    code: str = ""
    told: Callable[[Asked, Trial], None] = lambda asked, trial: None
    say: Callable[[str], None] = lambda line: None
    _known: dict[tuple[str, int, int], Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for trial in self.trials.replay():
            self._known["trial", trial.number, _rung(trial)] = trial
        for trial in self.others.replay():
            self._known[str(trial.parameters["what"]), int(trial.parameters["number"]), _rung(trial)] = trial

    def find(self, asked: Asked) -> Trial | None:
        """What the log holds for it.

        Raises:
            BoomError: the log holds another point under this number: it is of other code or settings.
        """
        known = self._known.get(asked.place)
        if known is None or asked.point is None:
            return known
        if known.point != asked.point or (asked.what == "trial" and dict(known.parameters) != dict(asked.parameters)):
            raise BoomError(
                f"{self.trials.path}: {asked.what} {asked.number} was another point there. The file is of other code "
                f"({known.code}, this is {self.code}); delete its directory to search again."
            )
        return known

    @property
    def count_others(self) -> int:
        return sum(place[0] != "trial" for place in self._known)

    def add(self, asked: Asked, trial: Trial) -> None:
        if asked.what == "trial":
            self.trials.append(trial)
        else:
            self.others.append(trial)
        self._known[asked.place] = trial
        self.told(asked, trial)


def _rung(trial: Trial) -> int:
    return -1 if trial.rung is None else trial.rung


class ScriptSearch(Searcher, Generic[Result]):
    """Drives a script through Tune. ``result`` is what the script returned; ``broken`` what went wrong in it."""

    def __init__(self, script: Script[Result], records: Records) -> None:
        super().__init__(metric=VALUE, mode="min")
        self._script, self._records = script, records
        self._batch: list[Asked] = []
        self._waiting: deque[Asked] = deque()
        self._running: dict[str, Asked] = {}
        self._deaths: Counter[tuple[str, int, int]] = Counter()
        self._said: list[str] = []
        self.result: Result | None = None
        self.broken: BoomError | None = None
        self.finished = False
        self._advance(lambda: next(script))
        self._settle()

    def suggest(self, trial_id: str) -> Any:
        """The next judgement to make; None while a round waits for its last one."""
        if self.finished:
            return Searcher.FINISHED
        if not self._waiting:
            return None
        asked = self._waiting.popleft()
        self._running[trial_id] = asked
        return to_config(asked)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """``found`` is a Judge's result as JSON: Tune flattens dictionaries. ``broken`` says why none can be made."""
        asked = self._running.pop(trial_id, None)
        if asked is None or self.finished:  # told twice, or after the end
            return
        result = {} if error or result is None else result
        self._deaths[asked.place] += not result
        if not result and self._deaths[asked.place] <= _RETRIES:  # Tune's own retries leave out actors between trials
            self._waiting.append(asked)
            return
        if result.get("broken"):
            self.broken, self.finished = BoomError(str(result["broken"])), True
            return
        for note in result.get("notes", ()):
            if note not in self._said:
                self._said.append(note)
                self._records.say(note)
        found = json.loads(result["found"]) if "found" in result else {"error": _DIED}
        self._records.add(asked, self._trial(asked, found))
        self._settle()

    def _trial(self, asked: Asked, found: Mapping[str, Any]) -> Trial:
        point, parameters = found.get("point"), found.get("parameters") or dict(asked.parameters)
        number = asked.number
        if asked.what != "trial":
            metric = found.get("metric") or {}
            parameters = {**parameters, "what": asked.what, "number": asked.number, "metric": metric}
            number = self._records.count_others
        return Trial(
            number=number,
            searcher=asked.searcher,
            point=Point.from_json(point) if point else asked.point,
            parameters=parameters,
            value=found.get("value"),
            by_dataset=found.get("by_dataset") or {},
            rung=asked.rung,
            rows=int(found.get("rows", 0)),
            seconds=found.get("seconds") or {},
            code=self._records.code,
            error=found.get("error"),
            score=found.get("score"),
        )

    def _settle(self) -> None:
        """Tell the script its batch once all of it is known, as often as the log alone knows all of the next one."""
        while not self.finished and not self._waiting and not self._running:
            known = [self._records.find(asked) for asked in self._batch]
            trials = [trial for trial in known if trial is not None]
            self._advance(lambda trials=trials: self._script.send(trials))  # type: ignore[misc]

    def _advance(self, step: Callable[[], list[Asked]]) -> None:
        try:
            self._batch = step()
            self._waiting.extend(asked for asked in self._batch if self._records.find(asked) is None)
        except StopIteration as ended:
            self.result, self.finished = ended.value, True
        except BoomError as error:  # raised in Tune's loop it would come out as a traceback
            self.broken, self.finished = error, True

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **_: Any) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings for a restore that nobody asks for; a generator cannot be."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the log is the state, and a script is rebuilt by replaying it."""
        open(checkpoint_path, "w").close()

    def restore(self, checkpoint_path: str) -> None:
        """See :meth:`save`."""


def to_config(asked: Asked) -> dict[str, Any]:
    """As a trial's config, which Tune copies and flattens: one value."""
    return {"asked": asked}
