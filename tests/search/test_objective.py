"""The objective: rows that no member has seen, by hash; loss and metrics by brute force; nested proxies."""

from __future__ import annotations

import itertools
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_corpus import SIZES

from boom_ray.config import BoomError
from boom_ray.data.bag_rules import BagRule
from boom_ray.data.bagging import bag_rows, dev_rows, draw, membership_hash, training_rows
from boom_ray.data.batches import DrawSettings
from boom_ray.data.membership import corpus_rows
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.evaluate.significance import Contrast, Paired
from boom_ray.search.objective import Objective, Source, dev_batches, dev_losses
from boom_ray.search.objective_metrics import RowMetric
from boom_ray.search.objective_rows import (
    ObjectiveSettings,
    common_out_of_bag,
    halving_shares,
    judged_rows,
    member_rows,
    rung_rows,
)

DRAW = DrawSettings(17, 2)


def drawn_with(tokens, *ratios, kind="subset"):
    return draw(corpus_rows(tokens), [BagRule(kind, r, i) for i, r in enumerate(ratios)], (0.1, 12), 3)


@pytest.fixture(scope="module")
def drawn(small_tokens):
    return drawn_with(small_tokens, 0.5, 1.0)


@pytest.fixture(scope="module")
def source(small_tokens):
    """Two members whose bags leave rows to both."""
    return Source(small_tokens, drawn_with(small_tokens, 0.5, 0.4), DRAW, (0, 1), reported=("exam",))


@pytest.fixture(scope="module")
def encoder(small_base):
    return Encoder.load(small_base(), device="cpu")


@pytest.mark.parametrize("half", ["a", "b"])
def test_dev_batches_hold_the_dev_rows_of_lowest_hash(small_tokens, drawn, half):
    rows, store = corpus_rows(small_tokens), TokenStore(small_tokens)
    for most in (200, 4):
        batches = {b.dataset: b for b in dev_batches(small_tokens, drawn, half, most, DRAW)}
        assert set(batches) == set(rows.names)
        for name, found in dev_rows(rows, drawn, half).items():
            hashes = membership_hash(rows.ids[found], drawn.dev_seed)
            chosen = np.sort(found[np.argsort(hashes)][:most])
            assert len(chosen) == min(6, most)
            expected = [r.query.tolist() for r in store.take(chosen)]
            assert [q.tolist() for q in batches[name].queries] == expected
            assert batches[name].global_rows == len(chosen)
    a, b = (dev_batches(small_tokens, drawn, h, 200, DRAW) for h in "ab")
    texts = [{q.tobytes() for batch in half_batches for q in batch.queries} for half_batches in (a, b)]
    assert not texts[0] & texts[1]


def test_a_corpus_without_dev_rows_is_refused(small_tokens):
    bare = draw(corpus_rows(small_tokens), [BagRule("subset", 1.0, 0)], (0.0001, 0), 3)
    with pytest.raises(BoomError, match=r"corpus\.dev\.fraction"):
        dev_batches(small_tokens, bare, "a", 200, DRAW)
    with pytest.raises(BoomError, match=r"corpus\.dev\.fraction"):
        Objective(Source(small_tokens, bare, DRAW, (0,)), ObjectiveSettings())


@pytest.mark.parametrize("kind", ["subset", "poisson", "multinomial"])
def test_half_a_has_its_dev_rows_and_those_in_no_bag(small_tokens, kind):
    drawn = drawn_with(small_tokens, 0.5, 0.4, kind=kind)
    source = Source(small_tokens, drawn, DRAW, (0, 1))
    rows = source.rows
    judged, dev = judged_rows(source, "a", ObjectiveSettings()), dev_rows(rows, drawn, "a")
    for name, training in training_rows(rows, drawn).items():
        held = set().union(*(bag_rows(rows, drawn, bag)[name].tolist() for bag in drawn.bags))
        free = set(training.tolist()) - held
        assert free
        assert set(judged[name].tolist()) == free | set(dev[name].tolist())
        assert len(judged[name]) == len(free) + len(dev[name])
        assert set(judged[name][: len(dev[name])].tolist()) == set(dev[name].tolist()), "dev rows come first"
    b = judged_rows(source, "b", ObjectiveSettings())
    assert {n: set(r.tolist()) for n, r in b.items()} == {
        n: set(r.tolist()) for n, r in dev_rows(rows, drawn, "b").items()
    }


def test_a_member_with_all_rows_leaves_none_and_it_says_so(small_tokens, drawn, source):
    whole = Source(small_tokens, drawn, DRAW, (0, 1))
    assert not any(len(rows) for rows in common_out_of_bag(whole).values())
    assert Objective(whole, ObjectiveSettings()).notes == [
        "member-1 has seen 100 % of the training rows: merges are judged on dev rows alone."
    ]
    assert Objective(whole, ObjectiveSettings(), half="b").notes == []
    assert Objective(source, ObjectiveSettings()).notes == []
    left = Source(small_tokens, drawn, DRAW, (0,))  # the other member was lost: it is not merged
    assert any(len(rows) for rows in common_out_of_bag(left).values())


def test_a_member_alone_is_judged_by_its_own_out_of_bag_rows(source, encoder):
    rows, settings = source.rows, ObjectiveSettings()
    for member, bag in enumerate(source.drawn.bags):
        held = bag_rows(rows, source.drawn, bag)
        for name, found in member_rows(source, "a", member, settings).items():
            own = set(training_rows(rows, source.drawn)[name].tolist()) - set(held[name].tolist())
            assert set(found.tolist()) == own | set(dev_rows(rows, source.drawn, "a")[name].tolist())
    objective = Objective(source, settings)
    objective.take_base(encoder, members=True)
    for member in (0, 1):
        judged = objective.judge_member(encoder, member)
        assert judged.value == 1.0
        assert judged.rows == sum(map(len, member_rows(source, "a", member, settings).values()))
    with pytest.raises(BoomError, match="member-2 is not among"):
        objective.judge_member(encoder, 2)


def test_rungs_are_nested_and_hold_every_dataset(source):
    settings = ObjectiveSettings(shares=halving_shares(3, 3))
    assert settings.shares == pytest.approx((1 / 9, 1 / 3, 1.0))
    rows = judged_rows(source, "a", settings)
    rungs = [rung_rows(rows, share) for share in settings.shares]
    for name, found in rows.items():
        for lower, upper in itertools.pairwise(rungs):
            assert 2 <= len(lower[name]) < len(upper[name])
            assert set(lower[name].tolist()) < set(upper[name].tolist())
        assert rungs[-1][name].tolist() == found.tolist()
    sizes = Objective(source, settings).sizes
    assert [size[0] for size in sizes] == [sum(map(len, rung.values())) for rung in rungs]
    assert sorted(sizes) == sizes
    assert 0 <= Objective(source, settings).padding < 0.2
    for shares in ((), (0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (1.0, 0.5)):
        with pytest.raises(BoomError, match="rise to 1"):
            ObjectiveSettings(shares=shares)


def test_test_sets_and_unknown_datasets_are_refused(source):
    with pytest.raises(BoomError, match="'exam' is reported as test"):
        Objective(source, ObjectiveSettings(datasets=("ask", "exam")))
    with pytest.raises(BoomError, match="'nothing', which is not in the corpus"):
        Objective(source, ObjectiveSettings(datasets=("nothing",)))
    assert set(Objective(source, ObjectiveSettings(datasets=("ask", "alike"))).weights) == {"ask", "alike"}


def test_losses_by_brute_force_from_encoded_vectors(encoder, small_tokens, drawn):
    """InfoNCE and CoSENT in float64 loops over the vectors that the encoder gives the same texts."""
    batches = dev_batches(small_tokens, drawn, "a", 200, DRAW)
    losses = dev_losses(encoder.backbone, batches, encoder.pooling, encoder.pad_id, 0.05)
    assert set(losses) == {b.dataset for b in batches}
    for batch in batches:
        one = _vectors(encoder, batch.queries), _vectors(encoder, batch.candidates)
        cosine = (one[0] @ one[1].T) / 0.05
        if batch.dataset == "alike":
            own = np.diagonal(cosine)
            pairs = [
                math.exp(own[j] - own[i])
                for i in range(len(own))
                for j in range(len(own))
                if batch.scores[i] > batch.scores[j]
            ]
            expected = math.log1p(math.fsum(pairs))
        else:
            expected = _info_nce(cosine, batch)
        assert losses[batch.dataset] == pytest.approx(expected, rel=1e-4)


def _vectors(encoder: Encoder, sequences: list[np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        rows = [
            encoder.backbone(
                input_ids=torch.tensor(s[None].astype(np.int64)), attention_mask=torch.ones(1, len(s))
            ).last_hidden_state[0]
            for s in sequences
        ]
    vectors = np.stack([r.double().mean(0).numpy() for r in rows])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _seen(batch, row: int) -> list[int]:
    """Candidates beside its positive that a row is compared with, by the rules of the loss."""
    positive, query = batch.candidates[row].tobytes(), batch.queries[row].tobytes()
    return [
        c
        for c, candidate in enumerate(batch.candidates)
        if c != row and (batch.in_batch[row] or batch.owners[c] == row) and candidate.tobytes() not in (positive, query)
    ]


def _info_nce(logits: np.ndarray, batch) -> float:
    total = 0.0
    for i in range(len(batch.queries)):
        total += math.log(math.fsum(math.exp(logits[i, c] - logits[i, i]) for c in [i, *_seen(batch, i)]))
    return total / len(batch.queries)


@pytest.mark.parametrize("aggregate", ["tasks", "types"])
def test_the_loss_is_the_mean_of_losses_relative_to_the_base(source, encoder, small_base, aggregate):
    settings = ObjectiveSettings(aggregate=aggregate, temperature=0.05, shares=(0.3, 1.0))
    objective = Objective(source, settings)
    with pytest.raises(BoomError, match="take_base"):
        objective.judge(encoder)
    objective.take_base(encoder)
    other = Encoder.load(small_base(5), device="cpu")
    rows = judged_rows(source, "a", settings)
    for rung, share in enumerate(settings.shares):
        assert objective.judge(encoder, rung).value == pytest.approx(1.0, abs=1e-12)
        judged = objective.judge(other, rung)
        batches = [source.batch(name, found) for name, found in rung_rows(rows, share).items()]
        losses = [dev_losses(e.backbone, batches, e.pooling, e.pad_id, settings.temperature) for e in (other, encoder)]
        assert judged.losses == pytest.approx(losses[0], rel=1e-4)
        relative = {name: losses[0][name] / losses[1][name] for name in losses[1]}
        assert judged.by_dataset == pytest.approx(relative, rel=1e-4)
        mean = math.fsum(relative.values()) / len(relative)  # one dataset of each type here
        assert judged.value == pytest.approx(mean, rel=1e-4)
        assert (judged.rung, judged.rows) == (rung, sum(len(b.queries) for b in batches))
        assert judged.seconds["encode"] > 0
        assert judged.seconds["total"] == pytest.approx(judged.seconds["encode"] + judged.seconds["score"])
    with pytest.raises(BoomError, match="rungs 0 to 1"):
        objective.judge(encoder, 2)


@pytest.mark.parametrize("ranking", ["ndcg", "mrr"])
def test_metrics_by_brute_force(source, encoder, ranking):
    from scipy.stats import spearmanr

    settings = ObjectiveSettings(kind="metric", ranking=ranking)
    judged = Objective(source, settings).judge(encoder)
    expected = {}
    for name, rows in judged_rows(source, "a", settings).items():
        batch = source.batch(name, rows)
        cosine = _vectors(encoder, batch.queries) @ _vectors(encoder, batch.candidates).T
        own = np.diagonal(cosine)
        if name == "alike":
            expected[name] = spearmanr(own, batch.scores).statistic
            continue
        seen = {row: _seen(batch, row) for row in range(len(rows))}
        ranks = np.array([1 + sum(cosine[r, c] >= own[r] for c in found) for r, found in seen.items() if found])
        if SIZES[name][0] != "retrieval":
            expected[name] = float((ranks == 1).mean())
        elif ranking == "mrr":
            expected[name] = float((1 / ranks).mean())
        else:
            expected[name] = float(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0).mean())
    assert set(judged.metric) == set(SIZES)
    assert judged.metric == pytest.approx(expected, abs=1e-6)
    assert judged.score == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert judged.value == pytest.approx(1 - judged.score)
    assert {n: s.score() for n, s in judged.samples.items()} == judged.metric


def test_one_vector_for_everything_is_no_good_model(source):
    batch = source.batch("ask", judged_rows(source, "a", ObjectiveSettings())["ask"])
    same = torch.ones(batch.texts, 8) / 8**0.5
    metric = RowMetric(batch, "classification", "ndcg")
    assert metric.samples(same).score() == 0.0


def test_types_weigh_datasets_as_mteb_does(source):
    """Three datasets of two types: the mean of the means."""
    objective = Objective(source, ObjectiveSettings(aggregate="types"))
    twice = SimpleNamespace(types={"a": "sts", "b": "sts", "c": "retrieval"}, settings=objective.settings)
    assert Objective._mean(twice, {"a": 0, "b": 0, "c": 0}) == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert objective.weights == dict.fromkeys(SIZES, 0.25)


def test_a_broken_model_has_no_value(source, small_base):
    broken = Encoder.load(small_base(7), device="cpu")
    objectives = [Objective(source, ObjectiveSettings(kind=kind)) for kind in ("loss", "metric")]
    for objective in objectives:
        objective.take_base(broken)
    with torch.no_grad():
        next(broken.backbone.parameters())[5:].fill_(float("nan"))
    for objective in objectives:
        judged = objective.judge(broken)
        assert math.isnan(judged.value)
        assert math.isnan(judged.score)
        assert judged.samples == {}


def test_two_objectives_give_the_same_bits_and_travel(source, encoder):
    settings = ObjectiveSettings(shares=(0.4, 1.0))
    values = []
    for given in (source, pickle.loads(pickle.dumps(source))):
        objective = Objective(given, settings)
        objective.take_base(encoder)
        values.append([objective.judge(encoder, rung).losses for rung in (0, 1, 0)])
    assert values[0] == values[1]
    assert values[0][0] == values[0][2]


def test_half_b_keeps_rows_for_intervals(source, encoder, small_base):
    objective = Objective(source, ObjectiveSettings(kind="metric"), half="b")
    found = {name: objective.judge(e) for name, e in (("base", encoder), ("other", Encoder.load(small_base(9), "cpu")))}
    paired = Paired({name: judged.samples for name, judged in found.items()})
    interval = paired.interval(Contrast(("other",), ("base",)), objective.metric_weights)
    assert interval is not None
    assert interval.low < interval.difference < interval.high
    assert interval.difference == pytest.approx(found["other"].score - found["base"].score, abs=1e-9)


def test_bfloat16_moves_the_loss_little(source, encoder):
    values = []
    for precision in ("float32", "bfloat16"):
        objective = Objective(source, ObjectiveSettings(precision=precision, temperature=0.05))
        objective.take_base(encoder)
        values.append(objective.judge(encoder).losses)
    assert values[0] != values[1]
    assert values[1] == pytest.approx(values[0], rel=0.1)


def test_a_perfect_base_divides_nothing_by_zero(source, encoder):
    objective = Objective(source, ObjectiveSettings(temperature=0.05))
    objective.take_base(encoder)
    (panel,) = objective._panels
    panel.base = dict.fromkeys(panel.base, 0.0)
    judged = objective.judge(encoder)
    assert judged.by_dataset == pytest.approx({name: 1e6 * loss for name, loss in judged.losses.items()})
    assert math.isfinite(judged.value)


def test_an_empty_draw_of_negatives_is_a_draw(small_tokens, drawn):
    batch = dev_batches(small_tokens, drawn, "a", 200, DrawSettings(17, 0))[0]
    assert len(batch.candidates) == len(batch.queries)
