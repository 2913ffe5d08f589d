"""The queue: nothing encoded twice, every job done once, the same scores however many workers."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boom_ray.config import BoomError
from boom_ray.encoder import Encoder
from boom_ray.evaluate import board as boards
from boom_ray.evaluate.actors import places
from boom_ray.evaluate.board import Board, Encode, Job, Need, Start, TooManyStarts
from boom_ray.evaluate.crew import Told, drive
from boom_ray.evaluate.here import Here
from boom_ray.evaluate.paused import Ended, Paused
from boom_ray.evaluate.queue import ModelToScore, evaluate_many, score_jobs
from boom_ray.evaluate.score import evaluate
from boom_ray.evaluate.sets import find_sets
from boom_ray.evaluate.vectors import text_key
from boom_ray.evaluate.worker import Work
from boom_ray.resources import Bundle

Models = Callable[[int], Path]


class Simulation:
    """Workers in simulated time; vectors are the texts' own keys, so that a wrong row is seen."""

    def __init__(self, requests: dict[Job, list[list[str]]], workers: int, rng: random.Random, deaths: int = 0) -> None:
        self.requests, self.rng, self.deaths = requests, rng, deaths
        costs = {job: float(sum(len(text) for texts in asked for text in texts)) for job, asked in requests.items()}
        self.board = Board(costs, workers, chunk_tokens=8)
        self.workers = workers
        self.encoded: Counter[tuple[int, bytes]] = Counter()
        self.switches: Counter[int] = Counter()
        self.begun: dict[Job, int] = {}
        self.done: Counter[Job] = Counter()
        self.clock = 0.0

    def run(self) -> Simulation:
        held: dict[int, int] = {}
        ends: dict[int, tuple[float, Any]] = {}
        while self.board.left:
            for worker in range(self.workers):
                if worker not in ends and (action := self.board.next(worker)):
                    model = action.part.model if isinstance(action, Encode) else action.job.model
                    self.switches[worker] += held.get(worker) != model
                    held[worker] = model
                    ends[worker] = (self.clock + self.cost(action), action)
            assert ends, "no worker can go on"
            worker = min(ends, key=lambda w: ends[w][0])
            self.clock, action = ends.pop(worker)
            if self.deaths and self.rng.random() < 0.1:
                self.deaths -= 1
                held.pop(worker)
                self.board.lost(worker)
            else:
                self.board.free(worker)
                self.take(action)
        return self

    def cost(self, action: Any) -> float:
        return sum(map(len, action.part.tokens)) if isinstance(action, Encode) else self.rng.random() * 20

    def take(self, action: Any) -> None:
        if isinstance(action, Encode):
            self.encoded.update((action.part.model, key) for key in action.part.keys)
            self.board.encoded(action.part, list(action.part.keys), 100 * len(action.part.keys))
            return
        asked = self.requests[action.job]
        if isinstance(action, Start):
            self.begun[action.job] = 0
        else:
            texts = asked[self.begun[action.job] - 1]
            found: list[bytes | None] = [None] * len(texts)
            for place, positions, rows in zip(action.places, action.positions, action.rows, strict=True):
                for at, row in zip(positions, rows, strict=True):
                    found[at] = place[row]
            assert found == [text_key(text) for text in texts]
        if self.begun[action.job] == len(asked):
            self.done[action.job] += 1
            self.board.finished(action.job)
            return
        texts = asked[self.begun[action.job]]
        self.begun[action.job] += 1
        tokens = [np.arange(len(text), dtype=np.int32) for text in texts]
        self.board.need(action.job, Need.of([text_key(text) for text in texts], tokens))


def requests(rng: random.Random, models: int, entries: int) -> dict[Job, list[list[str]]]:
    """Jobs that ask up to three times for texts, some of which all jobs share."""
    made = {}
    for model in range(models):
        for entry in range(entries):
            shared = [f"shared {i}" for i in rng.sample(range(40), 10)]
            own = [f"{entry} {'x' * rng.randint(1, 60)} {i}" for i in range(rng.randint(0, 60))]
            made[Job(model, entry)] = [own[:20], [], own[20:] + shared, own[:5] * 2][: rng.randint(1, 4)]
    return made


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_every_job_is_done_once_and_no_text_of_a_model_is_encoded_twice(workers: int, seed: int) -> None:
    rng = random.Random(seed)
    asked = requests(rng, models=3, entries=7)
    run = Simulation(asked, workers, rng).run()
    assert run.done == Counter(asked.keys())
    wanted = {(job.model, text_key(text)) for job, needs in asked.items() for texts in needs for text in texts}
    assert run.encoded == Counter(wanted)
    assert run.switches[0] == 3 if workers == 1 else sum(run.switches.values()) <= 6 * workers  # models are loaded


@pytest.mark.parametrize("seed", range(5))
def test_what_a_dead_worker_had_begun_is_done_by_another(seed: int) -> None:
    rng = random.Random(seed)
    asked = requests(rng, models=2, entries=6)
    run = Simulation(asked, 3, rng, deaths=3).run()
    assert run.deaths == 0
    assert run.done == Counter(asked.keys())
    assert max(run.encoded.values()) == 1  # finished slices outlive the worker that made them


def test_a_job_that_kills_its_workers_is_given_up() -> None:
    board = Board({Job(0, 0): 1.0}, 1, 8)
    for _ in range(2):
        assert isinstance(board.next(0), Start)
        board.lost(0)
    board.next(0)
    with pytest.raises(TooManyStarts, match="its worker died each time"):
        board.lost(0)


def test_one_large_corpus_is_encoded_by_all_workers() -> None:
    texts = [f"document {i} {'x' * (i % 50)}" for i in range(2000)]
    spans = {n: Simulation({Job(0, 0): [texts]}, n, random.Random(0)).run().clock for n in (1, 4)}
    assert spans[4] < spans[1] / 3.5


def test_the_longest_jobs_of_a_model_begin_first_and_free_workers_take_the_other_model() -> None:
    costs = {Job(model, entry): float(entry) for model in (0, 1) for entry in range(3)}
    board = Board(costs, 2, 8)
    first, second = board.next(0), board.next(1)
    assert {first, second} == {Start(Job(0, 2)), Start(Job(1, 2))}


def test_sets_that_share_a_result_file_are_not_open_together() -> None:
    board = Board({Job(0, 0): 2.0, Job(0, 1): 1.0}, 2, 8, files={0: "T", 1: "T"})
    assert board.next(0) == Start(Job(0, 0))
    assert board.next(1) is None
    board.free(0)
    board.finished(Job(0, 0))
    assert board.next(1) == Start(Job(0, 1))


def test_vectors_beyond_the_limit_are_forgotten_but_never_while_a_job_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_VECTOR_BYTES", 1000)
    rng = random.Random(3)
    asked = requests(rng, models=1, entries=8)
    run = Simulation(asked, 3, rng).run()
    assert run.done == Counter(asked.keys())
    assert max(run.encoded.values()) > 1


def test_paused_work_goes_on_with_its_answers_and_raises_where_it_is_waited_for() -> None:
    def work(ask: Callable[[str], int]) -> int:
        if (found := ask("a") + ask("b")) > 10:
            raise ValueError("too much")
        return found

    paused = Paused(work)
    assert paused.begin() == "a"
    assert paused.answer(1) == "b"
    assert paused.answer(2) == Ended(3)
    again = Paused(work)
    again.begin()
    again.answer(5)
    with pytest.raises(ValueError, match="too much"):
        again.answer(6)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[int, ...]]]:
    """Counts how often each sequence of tokens goes through a model."""
    counts: Counter[tuple[int, ...]] = Counter()
    original = Encoder.encode_tokens

    def counting(self: Encoder, sequences: Any, chunk_tokens: int = 16384) -> np.ndarray:
        counts.update(tuple(tokens.tolist()) for tokens in sequences)
        return original(self, sequences, chunk_tokens)

    monkeypatch.setattr(Encoder, "encode_tokens", counting)
    return counts


def test_one_process_gives_the_scores_of_evaluate_and_makes_only_what_is_missing(
    sets_root: Path, make_model: Models, tmp_path: Path, encoded: Counter[tuple[int, ...]]
) -> None:
    sets = find_sets([sets_root], None)
    wanted = [evaluate(make_model(seed), sets, results=tmp_path / "one") for seed in (0, 1)]
    encoded.clear()
    models = [ModelToScore(str(make_model(seed)), str(tmp_path / "many")) for seed in (0, 1)]
    lines: list[str] = []
    found = evaluate_many(models, sets, actors=0, say=lines.append)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
        assert list(ours) == list(theirs)
    assert max(encoded.values()) == 2  # once for each model
    assert len(lines) == 10
    assert lines[-1].endswith("(10 of 10)")
    encoded.clear()
    assert evaluate_many(models, sets, actors=0) == found
    assert not encoded


def test_a_broken_set_leaves_the_others_their_scores(sets_root: Path, make_model: Models, tmp_path: Path) -> None:
    sets = find_sets([sets_root], None)
    model = ModelToScore(str(make_model(0)), str(tmp_path))
    work = Work((model,), tuple(sets), 1024, extra=lambda encoder: 1 / 0)
    ended: list[Told] = []
    score_jobs(work, [Job(0, 0), Job(0, 5), Job(0, 3)], ended.append, actors=0)
    assert {end.job.entry: type(end.error) for end in ended} == {0: type(None), 3: type(None), 5: ZeroDivisionError}
    with pytest.raises(BoomError, match="is not a directory"):
        evaluate_many([ModelToScore("absent", str(tmp_path))], sets)


def test_a_process_beside_this_one_gives_the_same_scores_and_is_replaced_when_it_dies(
    sets_root: Path, make_model: Models, tmp_path: Path
) -> None:
    sets = find_sets([sets_root], None)[:3]
    wanted = evaluate(make_model(0), sets, results=tmp_path / "one")
    work = Work((ModelToScore(str(make_model(0)), str(tmp_path / "many"), "m", "1"),), tuple(sets), 1024)
    here = Here(work, threads=0, processes=1, cores=1)
    ended: dict[str, Any] = {}

    def told(end: Told) -> None:
        if not ended:
            here.processes[0].kill()
        assert end.error is None
        ended[sets[end.job.entry].name] = end.value

    first = here.processes[0].pid
    try:
        drive(Board({Job(0, i): 1.0 for i in range(3)}, here.count, 1024), here, told)
        second = here.processes[0]
    finally:
        here.close()
    assert ended == pytest.approx(wanted, abs=1e-6)
    assert second.pid != first
    assert second.poll() is not None  # none is left


def test_a_process_that_dies_again_and_again_is_not_replaced_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    here = Here(Work((), (), 1024), threads=0, processes=1)
    try:
        with pytest.raises(BoomError, match="die again and again"):
            drive(Board({Job(0, 0): 1.0}, here.count, 1024), here, lambda end: None)
    finally:
        here.close()


def test_actors_fit_their_nodes() -> None:
    gib = 2**30
    assert places([{"CPU": 2, "memory": 20 * gib}], gib // 10) == (2, Bundle(1, 0.0))
    assert places([{"CPU": 64, "memory": 400 * gib}] * 2, gib) == (32, Bundle(4, 0.0))
    assert places([{"CPU": 8, "memory": 20 * gib}], 2 * gib) == (2, Bundle(4, 0.0))
    assert places([{"CPU": 4, "memory": 2 * gib}], 4 * gib) == (1, Bundle(4, 0.0))
    assert places([{"CPU": 0}, {"CPU": 32, "GPU": 8}, {"CPU": 16}], gib) == (16, Bundle(2, 0.5))
    with pytest.raises(BoomError, match="no node with a CPU"):
        places([{"CPU": 0}], gib)
