"""Gradients through the merge: in Gram space, on the resident model, and from trial to trial."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import make_run

from boom_ray.config import BoomError
from boom_ray.data.bag_rules import BagRule
from boom_ray.data.bagging import bag_rows, dev_rows, draw
from boom_ray.data.batches import DrawSettings
from boom_ray.data.membership import corpus_rows
from boom_ray.encoder import Encoder, embed
from boom_ray.merge.engine import Engine
from boom_ray.merge.gram import Grams, gram
from boom_ray.merge.members import open_members
from boom_ray.merge.methods import Setting, tensor_coefficients
from boom_ray.search.baselines import whole_search
from boom_ray.search.coefficients import MergeSpec, point_coefficients
from boom_ray.search.descent import Descent
from boom_ray.search.forms import Direct, Form
from boom_ray.search.gradient import GradientSettings, SpanSlopes, gradient_descent, inner_products
from boom_ray.search.groups import tensor_groups
from boom_ray.search.jacobians import tensor_jacobian
from boom_ray.search.judging import Judge
from boom_ray.search.objective_rows import ObjectiveSettings, Source, judged_rows
from boom_ray.search.probe import Probe
from boom_ray.search.resident import Resident
from boom_ray.search.rounds import Records, ScriptSearch
from boom_ray.search.self_positioning import SelfPositioning
from boom_ray.search.settings import judge_spec, setup_of
from boom_ray.search.trial_log import TrialLog
from boom_ray.train.gather import gather_rows
from boom_ray.train.loop import batch_loss

OBJECTIVE = ObjectiveSettings(temperature=0.1, max_rows=200)
SPANS = [
    ("linear", False),
    ("linear", True),
    ("task_arithmetic", True),
    ("multislerp", False),
    ("multislerp", True),
    ("karcher", False),
    ("karcher", True),
]


# ---- in Gram space


def _gram(count: int, seed: int, common: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 60)) * rng.uniform(0.5, 2, (count, 1)) + common * rng.normal(size=60)
    return vectors @ vectors.T


def _differences(setting: Setting, matrix: np.ndarray, step: float = 1e-5) -> np.ndarray:
    columns = []
    for j in range(len(setting.weights) + 1):
        ends = []
        for sign in (1, -1):
            moved = np.append(setting.weights, setting.scale)
            moved[j] += sign * step
            there = replace(setting, weights=tuple(moved[:-1].tolist()), scale=float(moved[-1]))
            ends.append(tensor_coefficients(there, matrix, has_base=True))
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.array(columns).T


@pytest.mark.parametrize(("method", "task_vectors"), SPANS)
@pytest.mark.parametrize("common", [0.0, 1.0, 30.0])
def test_the_derivatives_of_coefficients_are_finite_differences(method, task_vectors, common):
    for count in (2, 3, 5):
        matrix = _gram(count, count, common)
        weights = np.random.default_rng(count).uniform(0.1, 1, count)  # not normalised: methods do that themselves
        setting = Setting(method, tuple(weights.tolist()), {}, 1.2, task_vectors)
        found = tensor_jacobian(setting, matrix)
        assert np.allclose(found, _differences(setting, matrix), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
@pytest.mark.parametrize("common", [0.0, 2.0, 1000.0])
def test_the_derivatives_of_arcs_between_two(method, common):
    setting = Setting(method, (0.3, 0.7), {}, 0.9, task_vectors=True)
    matrix = _gram(2, 4, common)
    assert np.allclose(tensor_jacobian(setting, matrix), _differences(setting, matrix), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("method", "task_vectors"), SPANS)
def test_a_tensor_that_one_member_or_none_has_moved(method, task_vectors):
    matrix = _gram(3, 6, 1.0)
    matrix[1] = matrix[:, 1] = 0.0
    for gram_ in (matrix, np.zeros((3, 3))):
        setting = Setting(method, (0.2, 0.5, 0.3), {}, 1.1, task_vectors)
        assert np.allclose(tensor_jacobian(setting, gram_), _differences(setting, gram_), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["ties", "model_stock", "passthrough", "sce"])
def test_a_method_without_weights_in_the_span_is_refused(method):
    count = 1 if method == "passthrough" else 2
    grams = Grams(count, True, {"a": np.eye(count + 1)}, ("x",) * (count + 1))
    with pytest.raises(BoomError, match="in the members' span"):
        Direct(grams, Setting(method, (0.5,) * count, {}, 1.0, True), {"a": "all"})


def test_what_a_direct_form_refuses():
    grams = Grams(2, True, {"a": np.eye(3)}, ("x",) * 3)
    for bounds in ((1.2, 0.8), (0.0, 1.0), (0.5, math.inf)):
        with pytest.raises(BoomError, match="bounds"):
            Direct(grams, Setting("linear", (0.5, 0.5), {}), {"a": "all"}, bounds)
    with pytest.raises(BoomError, match="weights above 0"):
        Direct(grams, Setting("linear", (1.0, 0.0), {}), {"a": "all"})


# ---- on the model


@pytest.fixture(scope="module")
def spec(small_base, tmp_path_factory) -> MergeSpec:
    members = tuple(small_base(seed) for seed in (1, 2, 3))
    file = tmp_path_factory.mktemp("grams") / "grams.npz"
    gram(list(members), small_base(0)).save(file)
    return MergeSpec(members, small_base(0), file, "multislerp", task_vectors=True)


@pytest.fixture(scope="module")
def source(small_tokens) -> Source:
    rules = [BagRule("subset", ratio, stream) for stream, ratio in enumerate((0.3, 0.4, 0.5))]
    drawn = draw(corpus_rows(small_tokens), rules, (0.2, 16), 3)
    return Source(small_tokens, drawn, DrawSettings(17, 2), (0, 1, 2))


@pytest.fixture(scope="module")
def probe(source) -> Probe:
    return Probe(source, judged_rows(source, "a", OBJECTIVE), batch=8, seed=5)


def _forms(spec: MergeSpec, method: str, task_vectors: bool, kind: str) -> Form:
    grams = Grams.load(spec.grams)
    if method == "self_positioning":
        return SelfPositioning(grams, penalty=0.07)
    setting = Setting(method, (0.5, 0.2, 0.3), {}, 1.1, task_vectors)
    return Direct(grams, setting, tensor_groups(list(grams.matrices), kind))


FORMS = [
    ("self_positioning", True, "none"),
    ("linear", False, "coarse"),
    ("multislerp", True, "coarse"),
    ("multislerp", False, "none"),
    ("karcher", True, "layers"),
    ("task_arithmetic", True, "coarse"),  # its weights are not normalised: the softmax alone keeps them on the simplex
]


class _Float64:
    """The same loss in float64: the merge written out in numpy, the model doubled."""

    def __init__(self, spec: MergeSpec, probe: Probe) -> None:
        from safetensors.numpy import load_file

        self.spec, self.grams, self.probe = spec, Grams.load(spec.grams), probe
        files = [load_file(d / "model.safetensors") for d in (*spec.members, spec.base)]
        self.tensors = {n: np.stack([f[n].astype(np.float64) for f in files]) for n in self.grams.matrices}
        self.encoder = Encoder.load(spec.base, device="cpu")
        self.encoder.backbone.double()
        self.parameters = dict(self.encoder.backbone.named_parameters())

    def loss(self, form: Form, x: np.ndarray, step: int) -> torch.Tensor:
        chosen = point_coefficients(self.grams, self.spec, form.point(x))
        with torch.no_grad():
            for name, values in chosen.items():
                self.parameters[name].copy_(torch.from_numpy(np.tensordot(values, self.tensors[name], 1)))
        batch = self.probe.batch(step)
        encoder = self.encoder
        vectors = embed(encoder.backbone, batch.queries + batch.candidates, encoder.pooling, encoder.pad_id, 16384)
        return batch_loss(vectors, gather_rows(batch), OBJECTIVE.temperature)

    def slope(self, form: Form, x: np.ndarray, step: int) -> dict[str, np.ndarray]:
        loss = self.loss(form, x, step)
        found = torch.autograd.grad(loss, [self.parameters[n] for n in self.tensors], allow_unused=True)
        return {
            name: np.zeros(4) if grad is None else (rows.reshape(4, -1) @ grad.numpy().ravel())
            for (name, rows), grad in zip(self.tensors.items(), found, strict=True)
        }


@pytest.mark.parametrize(("method", "task_vectors", "kind"), FORMS)
def test_the_gradient_through_the_merge_is_finite_differences(spec, probe, method, task_vectors, kind):
    """In float64, of the training loss of a whole model, by everything that a search moves."""
    spec = replace(spec, task_vectors=task_vectors)
    form, model = _forms(spec, method, task_vectors, kind), _Float64(spec, probe)
    penalty = (lambda x: 0.07 * form.shares(x)[1]) if isinstance(form, SelfPositioning) else (lambda x: 0.0)
    x = form.start() + np.random.default_rng(2).normal(size=len(form.start())) * 0.2
    x = form.inside(x)
    found = form.pull(x, model.slope(form, x, 1))
    for j in range(len(x)):
        ends = []
        for sign in (1, -1):
            there = x + sign * 1e-5 * np.eye(len(x))[j]
            with torch.no_grad():
                ends.append(float(model.loss(form, there, 1)) + penalty(there))
        assert found[j] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)
    assert np.abs(found).max() > 1e-3


@pytest.mark.parametrize(("method", "task_vectors", "kind"), FORMS[:3])
def test_the_resident_model_finds_the_same_gradient(spec, probe, method, task_vectors, kind):
    spec = replace(spec, task_vectors=task_vectors)
    form, model = _forms(spec, method, task_vectors, kind), _Float64(spec, probe)
    slopes = SpanSlopes(Resident(spec, device="cpu"), probe, OBJECTIVE, relative=False)
    x = form.start()
    for step in range(4):
        loss, slope = slopes(form.point(x), step)
        assert loss == pytest.approx(float(model.loss(form, x, step).detach()), rel=1e-5)
        expected = form.pull(x, model.slope(form, x, step))
        assert np.allclose(form.pull(x, slope), expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


def test_relative_losses_are_over_the_base(spec, probe):
    """Divided by the base's loss on the first batch of the dataset."""
    resident = Resident(spec, device="cpu")
    relative, plain = (SpanSlopes(resident, probe, OBJECTIVE, relative=r) for r in (True, False))
    model = _Float64(spec, probe)
    form = _forms(spec, "linear", True, "none")
    encoder = Encoder.load(spec.base, device="cpu")
    for step in range(4):
        batch = probe.batch(step)
        first = probe.first(batch.dataset)
        with torch.no_grad():
            vectors = embed(encoder.backbone, first.queries + first.candidates, encoder.pooling, encoder.pad_id, 4096)
            base = float(batch_loss(vectors, gather_rows(first), OBJECTIVE.temperature))
        one, other = (s(form.point(form.start()), step)[0] for s in (relative, plain))
        assert one == pytest.approx(other / base, rel=1e-5)
        assert other == pytest.approx(float(model.loss(form, form.start(), step).detach()), rel=1e-5)


@pytest.mark.parametrize("workers", [1, 3])
def test_inner_products_with_members_and_base(spec, workers):
    from safetensors.numpy import load_file

    files = [load_file(d / "model.safetensors") for d in (*spec.members, spec.base)]
    rng = np.random.default_rng(1)
    with Engine(open_members(spec.members, spec.base), workers) as engine:
        for name in engine.members.floats:
            array = rng.normal(size=files[0][name].shape).astype(np.float32)
            expected = [float(np.sum(array.astype(np.float64) * f[name].astype(np.float64))) for f in files]
            assert np.allclose(inner_products(engine, name, array), expected, rtol=1e-12, atol=1e-12)
        assert np.isnan(inner_products(engine, name, np.full_like(array, math.nan))).all()


# ---- probe batches


def test_probe_rows_are_in_no_bag_and_not_of_half_b(source, probe):
    rows = corpus_rows(source.tokens)
    held = [bag_rows(rows, source.drawn, bag) for bag in source.drawn.bags]
    reported = dev_rows(rows, source.drawn, "b")
    seen: dict[str, set[int]] = {}
    for step in range(80):
        name, visit = probe.visit(step)
        found, _ = probe.rows(name, visit)
        assert not set(found) & set(reported[name])
        assert not any(set(found) & set(bag[name]) for bag in held)
        assert len(found) == len(set(found)) <= 8
        seen.setdefault(name, set()).update(found.tolist())
    dev = dev_rows(rows, source.drawn, "a")
    assert all(set(dev[name].tolist()) <= seen[name] for name in rows.names)


def test_batches_are_drawn_evenly_whatever_the_sizes(source):
    rows = judged_rows(source, "a", OBJECTIVE)
    assert len({len(found) for found in rows.values()}) > 1
    tasks = Probe(source, rows, 8, 5)
    for rounds in (1, 7):
        counts = Counter(tasks.visit(step)[0] for step in range(4 * rounds))
        assert counts == dict.fromkeys(rows, rounds)
    orders = {tuple(tasks.visit(step)[0] for step in range(4 * k, 4 * k + 4)) for k in range(8)}
    assert len(orders) > 1


def test_evenly_over_types_shares_a_type_s_turns_among_its_datasets(source, monkeypatch):
    datasets = [
        {**d, "task_type": "retrieval" if d["name"] == "sort" else d["task_type"]} for d in source.store.datasets
    ]
    monkeypatch.setattr(source.store, "datasets", datasets)
    probe = Probe(source, judged_rows(source, "a", OBJECTIVE), 8, 5, "types")
    counts = Counter(probe.visit(step)[0] for step in range(3 * 10))
    assert counts == {"ask": 5, "sort": 5, "group": 10, "alike": 10}


def test_a_pass_over_a_dataset_has_each_row_once(source):
    rows = judged_rows(source, "a", OBJECTIVE)
    probe = Probe(source, rows, 4, 5)
    for name, every in rows.items():
        batches = len(every) // 4
        for epoch in (0, 1):
            found = [probe.rows(name, epoch * batches + k) for k in range(batches)]
            assert {e for _, e in found} == {epoch}
            assert len({int(r) for part, _ in found for r in part}) == 4 * batches


def test_a_batch_is_a_function_of_seed_and_step(source, probe):
    again = Probe(source, judged_rows(source, "a", OBJECTIVE), 8, 5)
    other = Probe(source, judged_rows(source, "a", OBJECTIVE), 8, 6)
    keys = [[p.batch(step).row_keys.tolist() for step in (9, 2, 5)] for p in (probe, again, other)]
    assert keys[0] == keys[1] != keys[2]


def test_what_a_probe_refuses(source):
    with pytest.raises(BoomError, match="no rows"):
        Probe(source, {}, 8, 5)
    with pytest.raises(BoomError, match="at least two rows"):
        Probe(source, judged_rows(source, "a", OBJECTIVE), 1, 5)


# ---- from trial to trial


@pytest.mark.parametrize("searcher", ["self_positioning", "gradient"])
def test_resumed_from_any_line_it_takes_the_same_steps(spec, source, searcher):
    settings = GradientSettings(searcher, 11, steps=3, batch=8, learning_rate=0.1, groups="coarse")

    def fresh() -> Descent:
        return gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, settings)

    descent, state, lines, points = fresh(), None, [], []
    for _ in range(4):
        state, point = descent.advance(state)
        lines.append(json.dumps(state))
        points.append(point)
    assert [json.loads(line)["step"] for line in lines] == [0, 3, 6, 9]
    assert len({json.dumps(point.to_json()) for point in points}) == 4
    for number in (0, 2):
        state, point = fresh().advance(json.loads(lines[number]))
        assert json.dumps(state) == lines[number + 1]
        assert point == points[number + 1]


@pytest.mark.parametrize("searcher", ["self_positioning", "gradient"])
def test_the_loss_falls(spec, source, searcher):
    """On the probe's own rows, over whole rounds of the datasets, relative to where it began."""
    settings = GradientSettings(searcher, 11, steps=8, batch=16, learning_rate=0.1, penalty=0.0, groups="coarse")
    descent = gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, settings)
    state, _ = descent.advance()
    losses = []
    for _ in range(3):
        state, _ = descent.advance(state)
        losses.append(math.fsum(state["losses"]))
    assert losses[-1] < losses[0]


def _search(run, folder: Path, dies_at: int | None = None) -> list[dict[str, object]]:
    """A whole search as Tune drives it, its judge in this process, to its end or until its log has so many trials."""
    recipe, ledger, keys = run
    judge = Judge(judge_spec(recipe, ledger, keys, folder / "half_b"))
    records = Records(TrialLog(folder / "trials.jsonl"), TrialLog(folder / "others.jsonl"), "1+test")
    search = ScriptSearch(whole_search(setup_of(recipe, ledger, keys)), records)
    number = 0
    while isinstance(config := search.suggest(str(number)), dict) and len(records.trials.read()) != dies_at:
        search.on_trial_complete(str(number), {"found": json.dumps(judge(config["asked"]))})
        number += 1
    assert search.broken is None
    return [trial.to_json() | {"seconds": None} for trial in records.trials.read()]


@pytest.mark.parametrize("searcher", ["self_positioning", "gradient"])
def test_killed_and_resumed_it_has_the_trials_of_an_undisturbed_search(small_tokens, small_base, tmp_path, searcher):
    settings = {"searcher": searcher, "trials": 4, "max_rows": 8, "gradient": {"steps": 2, "batch": 4}}
    run = make_run(tmp_path / "run", small_tokens, small_base, **settings)
    expected = _search(run, tmp_path / "alone")
    assert [t["parameters"]["step"] for t in expected] == [0, 2, 4, 6]
    assert len({t["value"] for t in expected}) == 4
    killed = tmp_path / "killed"
    for dies_at in (2, 3):
        _search(run, killed, dies_at)
        log = killed / "trials.jsonl"
        log.write_bytes(log.read_bytes()[:-9])  # as a kill in the middle of a line leaves it
        assert len(TrialLog(log).read()) == dies_at - 1
    assert _search(run, killed) == expected


class _Bowl:
    """A form of two numbers whose pull is told by the slope itself."""

    def start(self) -> np.ndarray:
        return np.array([1.0, -2.0])

    def point(self, x):
        return tuple(x)

    def pull(self, x, slope):
        return np.asarray(slope["x"])

    def inside(self, x):
        return np.clip(x, -2, 0.9)


def test_a_step_that_is_no_number_moves_nothing_but_is_counted():
    def slopes(point, step):
        value = math.nan if step % 3 == 1 else 1.0
        grad = [math.inf, 0.0] if step % 3 == 2 else [2 * point[0], 2 * point[1]]
        return value, {"x": np.array(grad)}

    state, _ = Descent(_Bowl(), slopes, steps=6, rate=0.1).advance(Descent(_Bowl(), slopes).advance()[0])
    assert state["step"] == 6
    assert state["updates"] == 2
    assert state["losses"] == [1.0, None, 1.0, 1.0, None, 1.0]
    assert json.loads(json.dumps(state, allow_nan=False)) == state


def test_adam_by_hand_and_inside_its_bounds():
    grads = iter([[2.0, -4.0], [1.0, 0.0]])
    descent = Descent(_Bowl(), lambda point, step: (0.0, {"x": np.array(next(grads))}), steps=2, rate=0.5)
    state, point = descent.advance(descent.advance()[0])
    first = [0.1 * 2 * 0.9 + 0.1 * 1, 0.1 * -4 * 0.9]
    second = [0.001 * 4 * 0.999 + 0.001 * 1, 0.001 * 16 * 0.999]
    assert np.allclose(state["first"], first)
    assert np.allclose(state["second"], second)
    after_one = np.clip([1.0 - 0.5, -2.0 + 0.5], -2, 0.9)
    step = [
        0.5 * (m / (1 - 0.9**2)) / (math.sqrt(v / (1 - 0.999**2)) + 1e-8) for m, v in zip(first, second, strict=True)
    ]
    assert np.allclose(point, np.clip(after_one - np.array(step), -2, 0.9), atol=1e-6)


def test_what_a_descent_refuses():
    with pytest.raises(BoomError, match="at least one step"):
        Descent(_Bowl(), lambda p, s: (0.0, {}), steps=0)
    for rate in (0.0, -1.0, math.nan):
        with pytest.raises(BoomError, match="learning rate"):
            Descent(_Bowl(), lambda p, s: (0.0, {}), rate=rate)
    descent = Descent(_Bowl(), lambda p, s: (0.0, {"x": np.zeros(2)}))
    with pytest.raises(BoomError, match="no place"):
        descent.advance({"weight_0": 0.3})
    state, _ = descent.advance()
    with pytest.raises(BoomError, match="another search"):
        descent.advance({**state, "x": [1.0, 2.0, 3.0]})


def test_the_slopes_leave_no_gradient_behind(spec, probe):
    resident = Resident(spec, device="cpu")
    slopes = SpanSlopes(resident, probe, OBJECTIVE, relative=True)
    form = _forms(spec, "linear", True, "none")
    slopes(form.point(form.start()), 0)
    assert all(p.grad is None for p in resident.parameters.values())


def test_one_member_has_nothing_to_weigh_but_its_scale(spec, tmp_path, source):
    file = tmp_path / "grams.npz"
    gram([spec.members[0]], spec.base).save(file)
    alone = MergeSpec(spec.members[:1], spec.base, file, "linear", False)
    one = Source(source.tokens, source.drawn, source.draw, (0,))
    settings = GradientSettings("gradient", 1, steps=4, batch=8, learning_rate=0.1, scale=(0.5, 1.5))
    descent = gradient_descent(Resident(alone, device="cpu"), one, OBJECTIVE, settings)
    state, start = descent.advance()
    _, point = descent.advance(state)
    assert start.weights == point.weights == {"all": (1.0,)}
    assert start.scale == 1.0 != point.scale


def test_weights_to_start_from_are_one_per_member(spec, source):
    settings = GradientSettings("gradient", 1, start=(0.5, 0.5))
    with pytest.raises(BoomError, match="2 weights to start from for 3 members"):
        gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, settings)


def test_the_start_is_where_it_was_told(spec, source):
    settings = GradientSettings("gradient", 1, start=(0.5, 0.3, 0.2), scale=(1.1, 1.4), groups="layers")
    _, point = gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, settings).advance()
    assert all(np.allclose(weights, (0.5, 0.3, 0.2)) for weights in point.weights.values())
    assert point.scale == 1.1
    assert {"embeddings", "layer-00", "layer-01"} <= set(point.weights)
    assert point.method == spec.method == "multislerp"
    chosen = replace(settings, method="karcher")
    assert gradient_descent(Resident(spec, device="cpu"), source, OBJECTIVE, chosen).advance()[1].method == "karcher"
