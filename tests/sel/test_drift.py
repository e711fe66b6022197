"""Two tests of drift: false alarms as seldom as they say, and what has changed is seen."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sel.sel.drift import Drift, distance_p, rank_sum_p


def drift(values: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> Drift:
    shuffles = np.stack([rng.permutation(len(values) + len(others)) for _ in range(199)])
    distance, p_distance = distance_p(values, others, shuffles)
    return Drift(len(values), 0.0, rank_sum_p(values[:, 0], others[:, 0]), distance, p_distance)


def test_a_known_rank_sum():
    assert rank_sum_p(np.array([4.0, 5, 6]), np.array([1.0, 2, 3])) == pytest.approx(0.0404, abs=2e-3)
    assert rank_sum_p(np.array([1.0, 1, 1]), np.array([1.0, 1])) == 1.0
    assert rank_sum_p(np.zeros(0), np.ones(3)) == 1.0


def test_false_alarms_are_as_seldom_as_the_level_says():
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(100):
        sample = rng.standard_normal((50, 5))
        alarms += drift(sample[:30], sample[30:], rng).seen(0.1)
    assert alarms <= 18  # 10 are expected; more than 18 come once in two hundred times


def test_a_shift_and_a_spread_are_seen():
    rng = np.random.default_rng(1)
    calm = rng.standard_normal((60, 5))
    assert drift(calm[:30] + np.array([0, 2, 0, 0, 0]), calm[30:], rng).seen(0.02)
    assert drift(calm[:30] * [1, 6, 1, 1, 1], calm[30:], rng).seen(0.02)
