"""Gradients through the merge, on the resident model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from boom_ray.encoder import Encoder, embed
from boom_ray.merge.engine import Engine
from boom_ray.merge.gram import Grams
from boom_ray.merge.members import open_members
from boom_ray.merge.methods import Setting
from boom_ray.search.coefficients import MergeSpec, point_coefficients
from boom_ray.search.forms import Direct, Form
from boom_ray.search.gradient import SpanSlopes, inner_products
from boom_ray.search.groups import tensor_groups
from boom_ray.search.objective_rows import ObjectiveSettings, judged_rows
from boom_ray.search.probe import Probe
from boom_ray.search.resident import Resident
from boom_ray.search.self_positioning import SelfPositioning
from boom_ray.train.gather import gather_rows
from boom_ray.train.loop import batch_loss

OBJECTIVE = ObjectiveSettings(temperature=0.1, max_rows=200)


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


def test_the_slopes_leave_no_gradient_behind(spec, probe):
    resident = Resident(spec, device="cpu")
    slopes = SpanSlopes(resident, probe, OBJECTIVE, relative=True)
    form = _forms(spec, "linear", True, "none")
    slopes(form.point(form.start()), 0)
    assert all(p.grad is None for p in resident.parameters.values())
