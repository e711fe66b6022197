"""Rounds that train more than the head: what training changed comes back, bounded, and a few wrong devices do not lead."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.arrays import read_tensors, tensor_bytes, tensor_notes
from edge_sel.cli.main import cli
from edge_sel.data.builtin import load_relit
from edge_sel.data.shifts import write_folder
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import BadInputError, DataError, UsageError
from edge_sel.fleet.delta import delta_plan, make_delta, merge_deltas
from edge_sel.fleet.header import Origin
from edge_sel.fleet.merge import merge_updates, new_pack
from edge_sel.fleet.update import check_update
from edge_sel.pack.reader import builtin_pack, open_pack
from edge_sel.sel import aggregation

PACK = builtin_pack()
ENGINE = OrtEngine(1)


def trained(plan="last", seed=0, by=0.01):
    """Weights as training would leave them: some channels changed."""
    rng, weights = np.random.default_rng(seed), PACK.weights()
    for name in PACK.plan(plan).trainable:
        some = rng.random(len(weights[name])) < 0.5
        noise = rng.standard_normal(weights[name].shape).astype(np.float32)
        weights[name][some] += by * noise[some] * np.abs(weights[name]).mean()
    for mean, variance in zip(PACK.plan(plan).buffers[::2], PACK.plan(plan).buffers[1::2], strict=True):
        weights[mean] = weights[mean] + np.float32(0.1)
        weights[variance] = weights[variance] * np.float32(1.1)
    return weights


def update(weights, plan="last", images=50, nonce="a", **more):
    content, left = make_delta(PACK, plan, weights, images, Origin(nonce), **more)
    return check_update(content, None, PACK, None, nonce), left, content


@pytest.mark.parametrize("plan", ["head", "last", "full", "last-c25"])
def test_a_change_comes_back_but_for_what_was_left_out(plan):
    weights, old = trained(plan), PACK.weights()
    found, left, content = update(weights, plan)
    for name in PACK.plan(plan).trainable:
        wanted = weights[name] - old[name]
        np.testing.assert_allclose(found.delta.change[name] + left[name], wanted, atol=1e-6)
        untouched = (wanted == 0).reshape(len(wanted), -1).all(1) if wanted.ndim > 1 else np.zeros(0, bool)
        assert not found.delta.change[name][: len(untouched)][untouched].any()
    for name in PACK.plan(plan).buffers:
        np.testing.assert_array_equal(found.delta.statistics[name], weights[name])
    assert found.delta.sent <= 0.25 * found.delta.size + 1
    assert len(content) < 0.4 * 4 * found.delta.size + 20_000


def test_what_is_left_out_is_sent_in_later_rounds():
    weights, old = trained("head"), PACK.weights()
    residual, total = None, None
    for at in range(12):  # nothing new is learnt after the first round
        found, residual, _ = update(weights if at == 0 else old, "head", nonce=str(at), residual=residual)
        part = found.delta.change
        total = part if total is None else {name: total[name] + part[name] for name in part}
    for name, value in total.items():
        wanted = weights[name] - old[name]
        assert np.linalg.norm(value - wanted) < 0.05 * np.linalg.norm(wanted) + 1e-9


def test_nothing_learnt_is_a_delta_too():
    found, _, _ = update(PACK.weights())
    assert found.delta.sent == 0 and not any(value.any() for value in found.delta.change.values())


def test_what_no_delta_can_be_made_of():
    with pytest.raises(DataError, match="at least 20"):
        update(trained(), images=19)
    with pytest.raises(BadInputError, match="diverged"):
        update(trained(by=np.nan))
    with pytest.raises(BadInputError, match="diverged"):
        update(trained(by=100))
    for plan in ("ridge", "bn", "none"):
        with pytest.raises(UsageError):
            delta_plan(PACK, plan)


def changed(content, **how):
    stored, header = read_tensors(content), json.loads(tensor_notes(content)["update"])
    for name, value in how.items():
        if name in stored:
            stored[name] = value(stored[name])
        elif name.startswith("more_"):
            stored[name] = value
        else:
            header[name] = value
    return tensor_bytes(stored, {"update": json.dumps(header)})


@pytest.mark.parametrize("how", [
    {"plan": None}, {"plan": "bn"}, {"plan": "ridge"}, {"plan": "full"}, {"plan": "x" * 500}, {"kind": "statistics"},
    {"kind": "other"}, {"classes": [*PACK.manifest.model.classes, "new"]}, {"images": 1},
    {"rows": lambda a: a[::-1].copy()}, {"rows": lambda a: a + np.int32(10**6)}, {"rows": lambda a: a[:-1]},
    {"rows": lambda a: a.astype(np.int64)}, {"mask": lambda a: a[:-1]}, {"mask": lambda a: ~a},
    {"mask": lambda a: np.zeros_like(a)}, {"values": lambda a: a[:-1]}, {"values": lambda a: a.astype(np.float32)},
    {"scales": lambda a: a * np.float32(np.nan)}, {"scales": lambda a: a * np.float32(1e30)}, {"scales": lambda a: -a},
    {"scales": lambda a: a[:-1]}, {"rows": lambda a: a.reshape(1, -1)}, {"more_x": np.zeros(3, np.float32)},
])  # fmt: skip
def test_what_no_training_makes_is_refused(how):
    content = update(trained())[2]
    with pytest.raises(BadInputError) as error:
        check_update(changed(content, **how), None, PACK, None, "file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("statistics", [
    lambda a: a[:-1], lambda a: a * np.float32(np.nan), lambda a: -np.abs(a), lambda a: a * np.float32(1e6),
    lambda a: a.astype(np.float64),
])  # fmt: skip
def test_batch_statistics_of_no_images_are_refused(statistics):
    content = update(trained("full"), "full")[2]
    with pytest.raises(BadInputError):
        check_update(changed(content, statistics=statistics), None, PACK, None, "file")


@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.integers(1, 3))
def test_rules_stand_the_wrong_devices_that_they_promise(seed, right, wrong):
    rng = np.random.default_rng(seed)
    wrong = min(wrong, (right - 1) // 2)
    good = rng.standard_normal((right + wrong, 6))
    bad = good.copy()
    bad[:wrong] = 1e6 * rng.standard_normal((wrong, 6))
    low, high = good[wrong:].min(0), good[wrong:].max(0)
    middle = aggregation.median(bad)
    assert ((middle >= low) & (middle <= high)).all()
    share = (wrong + 1e-9) / (right + wrong)
    trimmed = aggregation.trimmed_mean(bad, share)
    assert ((trimmed >= low) & (trimmed <= high)).all()
    if right >= wrong + 3:
        assert aggregation.krum(aggregation.distances(bad), wrong) >= wrong


def test_the_mean_of_moments_is_that_of_all_samples():
    rng = np.random.default_rng(0)
    parts = [rng.normal(at, 1 + at, (20 * (at + 1), 4)) for at in range(3)]
    means, variances = np.stack([p.mean(0) for p in parts]), np.stack([p.var(0) for p in parts])
    mean, variance = aggregation.mean_of_moments(means, variances, np.array([len(p) for p in parts], float))
    every = np.concatenate(parts)
    np.testing.assert_allclose(mean, every.mean(0))
    np.testing.assert_allclose(variance, every.var(0))


def test_fedavg_weighs_by_images_and_momentum_goes_on():
    old = PACK.weights()
    deltas = [update(trained("head", seed), "head", nonce=str(seed))[0].delta for seed in range(2)]
    for delta, by in zip(deltas, (1, -1), strict=True):  # of equal length, so that neither is shortened
        for name in delta.change:
            delta.change[name][...] = by * 1e-3
    once, velocity, _ = merge_deltas(old, deltas, [30, 10], "mean")
    for name in deltas[0].change:
        np.testing.assert_allclose(once[name] - old[name], 0.5e-3, atol=1e-6)
    assert not velocity
    first, velocity, _ = merge_deltas(old, deltas, [30, 10], "momentum")
    second, _, _ = merge_deltas(first, deltas, [30, 10], "momentum", velocity)
    for name in deltas[0].change:
        np.testing.assert_allclose(second[name] - first[name], 0.95e-3, atol=1e-6)


@pytest.mark.parametrize("rule", ["mean", "trimmed", "median", "krum"])
def test_one_device_of_five_cannot_lead_the_fleet_away(rule):
    found = [update(trained("last", 1), nonce=str(at))[0] for at in range(4)]
    away = update(trained("last", 9, by=0.5), nonce="bad")[0]
    merged, alone = (merge_updates(PACK, some, ENGINE, rule=rule) for some in ([away, *found], found))
    old = PACK.weights()

    def distance(one, other):
        return np.sqrt(sum(((one[name] - other[name]) ** 2).sum() for name in PACK.plan("last").trainable))

    bound = distance(alone.weights, old)
    assert distance(merged.weights, alone.weights) <= 1.01 * bound
    if rule != "mean":
        assert distance(merged.weights, alone.weights) <= 0.9 * bound
    assert merged.kind == "delta" and merged.judged == len(PACK.anchors.images)


def test_kinds_are_not_mixed():
    one, other = update(trained("last"))[0], update(trained("head"), "head", nonce="b")[0]
    with pytest.raises(BadInputError, match="several kinds"):
        merge_updates(PACK, [one, other], ENGINE)


def run(*arguments):
    return CliRunner().invoke(cli, ["fleet", *map(str, arguments)], catch_exceptions=True)


def test_commands_of_two_rounds(tmp_path):
    images = load_relit("field")
    for at in range(2):
        write_folder(images.subset(np.arange(at * 100, at * 100 + 100)), tmp_path / f"images{at}")
    pack = PACK.path
    for number in range(2):
        for at in range(2):
            done = run("update", pack, "--kind", "delta", "--plan", "last", "--epochs", 2, "--threads", 1, "--json",
                       "--data", tmp_path / f"images{at}", "--out", tmp_path / f"{number}-{at}", "--residual",
                       tmp_path / f"{at}.left")  # fmt: skip
            assert done.exit_code == 0, (done.output, done.exception)
            assert json.loads(done.stdout)["kind"] == "delta" and (tmp_path / f"{at}.left").exists()
        shown = json.loads(run("inspect", pack, tmp_path / f"{number}-0", "--json").stdout)
        assert 0 < shown["numbers"] <= shown["of"] and shown["plan"] == "last"
        done = run("merge", pack, *[tmp_path / f"{number}-{at}" for at in range(2)], "--rule", "momentum", "--velocity",
                   tmp_path / "velocity", "--out", tmp_path / f"{number}.edgepack", "--json")  # fmt: skip
        assert done.exit_code == 0, (done.output, done.exception)
        assert (tmp_path / "velocity").exists()
        pack = tmp_path / f"{number}.edgepack"
    new, old = open_pack(pack).weights(), PACK.weights()
    assert any(not np.array_equal(new[name], old[name]) for name in PACK.plan("last").trainable)
    (tmp_path / "velocity").write_bytes(b"x")
    bad = run("merge", pack, tmp_path / "1-0", "--velocity", tmp_path / "velocity", "--out", tmp_path / "none")
    assert isinstance(bad.exception, BadInputError) and not (tmp_path / "none").exists()


def test_a_new_pack_of_deltas_has_the_changed_body():
    merged = merge_updates(PACK, [update(trained("full"), "full")[0]], ENGINE)
    made = new_pack(PACK, merged)
    assert made.digest != PACK.digest and made.sums is None  # features are others now
