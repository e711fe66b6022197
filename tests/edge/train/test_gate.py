"""The gate of a session: the wanted share passes from any batch size; nobody starves, and the losses are rescaled."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.config.settings import Settings
from edge_sel.edge.train.gate import WAIT, Gate
from edge_sel.sel import hardness, selection, sundew
from edge_sel.sel.sundew import significance_v1

IMAGES = 300


def make(kind="sundew", rate=0.5, significance="v1"):
    rng = np.random.default_rng(0)
    std = rng.random(IMAGES).astype(np.float32)
    return Gate(replace(Settings(), gate=kind, target_rate=rate, significance=significance), std)


def memory(seed=0):
    rng = np.random.default_rng(seed)
    losses = rng.exponential(1, IMAGES).astype(np.float32)
    return hardness.update(hardness.init(IMAGES), np.arange(IMAGES), losses, losses < 0.7, gamma=1.0)


def decide(gate, size, batches, known, seed=0, ages=None):
    """(candidates, choice) of every chunk; the memory stays as it is."""
    rng, state, ages = np.random.default_rng(seed), gate.start(), ages or selection.init_ages(IMAGES)
    entropy = rng.random(IMAGES).astype(np.float32)
    order = np.zeros(0, int)
    for _ in range(batches):
        if len(order) < size:
            order = rng.permutation(IMAGES)
        candidates, order = order[:size], order[size:]
        choice = gate.choose(state, ages, known, entropy, candidates, rng.random(size))
        state, ages = choice.state, choice.ages
        yield candidates, choice


def forget(known, share, seed=0):
    """The memory without a share of its images."""
    gone = np.random.default_rng(seed).random(IMAGES) < share
    return known._replace(seen=np.where(gone, 0, known.seen), r=np.where(gone, 1.0, known.r)), gone


KINDS = ["sundew", "hard", "random"]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_sundew_and_hard_choose_the_hard_ones_and_random_does_not(rate):
    r = memory().r
    lead = {}
    for kind in KINDS:
        chosen = [c[choice.mask] for c, choice in decide(make(kind, rate), 32, 100, memory())]
        lead[kind] = r[np.concatenate(chosen)].mean() - r.mean()
    assert lead["hard"] > lead["sundew"] > 0.1 and abs(lead["random"]) < 0.1


@pytest.mark.parametrize(("kind", "rate"), [("off", 0.1), ("sundew", 1.0), ("hard", 1.0), ("random", 1.0)])
def test_an_open_gate_lets_all_pass(kind, rate):
    gate = make(kind, rate)
    assert gate.open
    assert all(choice.mask.all() for _, choice in decide(gate, 16, 10, memory()))


@pytest.mark.slow
@given(
    kind=st.sampled_from(KINDS),
    significance=st.sampled_from(["v1", "v101"]),
    rate=st.sampled_from([0.02, 0.05, 0.1, 0.25, 0.5, 0.9]),
    size=st.sampled_from([1, 4, 8, 16, 32, 64]),
    share=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_chosen_share_is_the_target(kind, significance, rate, size, share, seed):
    known, _ = forget(memory(), share)
    masks = [c.mask for _, c in decide(make(kind, rate, significance), size, 3200 // size, known, seed)]
    noise = 3 * np.sqrt(rate * (1 - rate) / 3200)
    assert np.mean(masks) == pytest.approx(rate, abs=0.01 + noise)


@pytest.mark.parametrize("kind", [*KINDS, "off"])
def test_weights_are_those_of_the_chosen(kind):
    for _, choice in decide(make(kind, 0.3), 32, 50, memory()):
        assert choice.weights.dtype == np.float32
        assert np.array_equal(choice.weights > 0, choice.mask)
        if kind != "sundew":
            assert set(choice.weights[choice.mask]) <= {1.0}
    passed = np.concatenate([c.weights[c.mask] for _, c in decide(make(kind, 0.3), 32, 400, memory())])
    assert passed.mean() == pytest.approx(1.0, abs=0.03)


def says(gate, known, batches=6000, size=16):
    """The total weight of every image per decision on it, relative to the mean."""
    total, asked = np.zeros(IMAGES), np.zeros(IMAGES)
    for candidates, choice in decide(gate, size, batches, known):
        total[candidates] += choice.weights
        asked[candidates] += 1
    return total / asked / (total.sum() / asked.sum())


@pytest.mark.slow
def test_sundew_gives_easy_and_hard_the_same_say_and_hard_does_not():
    """Over a long run, the limit of waiting, unknown images and the wandering threshold included."""
    known, gone = forget(memory(), 0.3)
    for kind, worst in (("sundew", 0.05), ("random", 0.05), ("hard", math.inf)):
        say = says(make(kind, 0.5), known)
        order = np.argsort(known.r + 1000 * gone)
        tenths = [say[part].mean() for part in np.array_split(order, 10)]
        assert np.abs(np.array(tenths) - 1).max() < worst
        if kind == "hard":
            assert tenths[0] < 0.6 < 1.4 < tenths[6]


@pytest.mark.parametrize("kind", KINDS)
def test_the_never_visited_pass_at_the_plain_rate(kind):
    known, gone = forget(memory(), 0.5)
    passed = [(c.mask[gone[i]].mean(), c.mask[~gone[i]].mean()) for i, c in decide(make(kind, 0.3), 60, 600, known)]
    assert np.mean(passed, 0) == pytest.approx([0.3, 0.3], abs=0.03)


def test_a_loss_that_diverged_counts_as_unknown():
    known = memory()
    known.r[:100] = np.where(np.arange(100) % 2, np.inf, np.nan)
    passed = np.zeros(2)
    for candidates, choice in decide(make(rate=0.3), 30, 400, known):
        assert np.isfinite(choice.weights).all()
        passed += [choice.mask[candidates < 100].sum(), choice.mask[candidates >= 100].sum()]
    assert passed[0] / passed.sum() == pytest.approx(1 / 3, abs=0.03)


def waits(kind, rate):
    longest = 0
    gate = make(kind, rate)
    for _, choice in decide(gate, 30, int(10 * 6 / rate), memory()):
        longest = max(longest, int(choice.ages.waited.max()))
    return longest


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_nobody_waits_longer_than_the_limit_and_the_hard_gate_starves(rate):
    assert waits("sundew", rate) < math.ceil(WAIT / rate) <= waits("hard", rate)


def test_the_overdue_pass_for_sure_and_weigh_the_rate():
    old = selection.init_ages(IMAGES)
    old.waited[::10] = 20
    candidates, choice = next(decide(make(rate=0.3), 60, 1, memory(), ages=old))
    late = candidates % 10 == 0
    assert choice.mask[late].all() and late.any()
    assert choice.weights[late] == pytest.approx(0.3 + 0.7 * late.mean(), abs=0.03)
    assert (choice.ages.waited[candidates] == np.where(choice.mask, 0, old.waited[candidates] + 1)).all()


def test_pressure_lowers_the_rate_of_every_kind_and_lengthens_the_limit():
    for kind in KINDS:
        gate = make(kind, 0.5)
        gate.pressure = 1.0
        masks = [choice.mask for _, choice in decide(gate, 50, 600, memory())]
        assert np.mean(masks[200:]) == pytest.approx(0.02, abs=0.01)


def test_the_hard_choice_is_the_published_one_where_all_is_known():
    gate, rng = make("hard", 0.3), np.random.default_rng(1)
    known, std = memory(), np.random.default_rng(0).random(IMAGES).astype(np.float32)
    state, ages, entropy = gate.start(), selection.init_ages(IMAGES), np.zeros(IMAGES, np.float32)
    for _ in range(50):
        candidates, u = rng.permutation(IMAGES)[:32], rng.random(32)
        score = significance_v1(known.r[candidates], std[candidates])
        ranks = (score.argsort().argsort() + 0.5) / len(score)
        mask = sundew.active_mask(state, ranks, u)
        choice = gate.choose(state, ages, known, entropy, candidates, u)
        state = sundew.update(gate.config, state, float(mask.mean()))
        assert np.array_equal(choice.mask, mask) and choice.state == state


@pytest.mark.parametrize("kind", ["sundew", "hard"])
@pytest.mark.parametrize(("significance", "expected"), [("v1", "brighter"), ("v101", "doubtful")])
def test_where_hardness_says_little_the_other_half_of_significance_decides(kind, significance, expected):
    gate, rng = make(kind, 0.5, significance), np.random.default_rng(3)
    # To v1, which divides by the mean, small losses say as much as large ones.
    losses = np.ones(IMAGES) if significance == "v1" else rng.exponential(0.01, IMAGES)
    known = hardness.update(hardness.init(IMAGES), np.arange(IMAGES), losses, np.ones(IMAGES, bool), gamma=1.0)
    other = {"brighter": np.random.default_rng(0).random(IMAGES), "doubtful": rng.random(IMAGES)}
    lead = dict.fromkeys(other, 0.0)
    for _ in range(20):
        order = rng.permutation(IMAGES)[:100]
        entropy = other["doubtful"].astype(np.float32)
        mask = gate.choose(gate.start(), selection.init_ages(IMAGES), known, entropy, order, rng.random(100)).mask
        for name, value in other.items():
            lead[name] += (value[order][mask].mean() - value[order].mean()) / 20
    assert lead.pop(expected) > 0.1 and abs(lead.popitem()[1]) < 0.05
