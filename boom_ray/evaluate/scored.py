"""The scores of a run's model, as they lie in its ledger: main scores, tasks, and what each score was made from."""

from __future__ import annotations

from boom_ray.evaluate.compare import Scored, Task
from boom_ray.evaluate.samples import Samples, read_samples
from boom_ray.ledger import Key, Ledger


def read_scored(ledger: Ledger, scores: Key, name: str) -> tuple[Scored, list[Task]]:
    """A model, which is called ``name`` here, by the artifact of its scores, and the tasks that it was scored on."""
    meta = ledger.manifest(scores)["meta"]
    tasks = [Task(s["name"], s["task_type"], s["domain"], s["metric"], s.get("benchmark", "")) for s in meta["sets"]]
    return Scored(name, meta["scores"], model_samples(ledger, scores)), tasks


def model_samples(ledger: Ledger, scores: Key) -> dict[str, Samples]:
    """``{set: samples}``: what the scores of one model of a run were made from."""
    files = read_samples(ledger.path(scores) / "mteb" / "samples")
    stems = {s["name"]: s["name"].replace("/", "-") for s in ledger.manifest(scores)["meta"]["sets"]}
    return {name: files[stem] for name, stem in stems.items() if stem in files}
