"""The gate of a session: the wanted share passes, from any batch size, and Sundew's share is the hard one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.gate import Gate
from edge_sel.sel import hardness
from edge_sel.settings import Settings

IMAGES = 300


def make(kind="sundew", rate=0.5, significance="v1"):
    rng = np.random.default_rng(0)
    std = rng.random(IMAGES).astype(np.float32)
    return Gate(replace(Settings(), gate=kind, target_rate=rate, significance=significance), std)


def memory(seed=0):
    rng = np.random.default_rng(seed)
    losses = rng.exponential(1, IMAGES).astype(np.float32)
    return hardness.update(hardness.init(IMAGES), np.arange(IMAGES), losses, losses < 0.7, gamma=1.0)


def play(gate, size, batches, seed=0):
    """(candidates, mask) of every batch."""
    rng, state, known = np.random.default_rng(seed), gate.start(), memory()
    entropy = rng.random(IMAGES).astype(np.float32)
    for _ in range(batches):
        candidates = rng.permutation(IMAGES)[:size]
        mask, state = gate.select(state, known, entropy, candidates, rng.random(size))
        yield candidates, mask


@given(
    kind=st.sampled_from(["sundew", "random"]),
    significance=st.sampled_from(["v1", "v101"]),
    rate=st.sampled_from([0.02, 0.05, 0.1, 0.25, 0.5, 0.9]),
    size=st.sampled_from([1, 4, 8, 16, 32, 64]),
    seed=st.integers(0, 99),
)
def test_the_share_is_the_target(kind, significance, rate, size, seed):
    batches = 3200 // size
    passed = sum(int(mask.sum()) for _, mask in play(make(kind, rate, significance), size, batches, seed))
    assert passed / (size * batches) == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_sundew_chooses_the_hard_ones_and_random_does_not(rate):
    r = memory().r
    lead = {}
    for kind in ("sundew", "random"):
        chosen = [(r[c][mask].mean(), r[c].mean()) for c, mask in play(make(kind, rate), 32, 100)]
        lead[kind] = np.mean([a - b for a, b in chosen])
    assert lead["sundew"] > 0.4 and abs(lead["random"]) < 0.1


@pytest.mark.parametrize(("kind", "rate"), [("off", 0.1), ("sundew", 1.0), ("random", 1.0)])
def test_an_open_gate_lets_all_pass(kind, rate):
    gate = make(kind, rate)
    assert gate.open
    assert all(mask.all() for _, mask in play(gate, 16, 10))
