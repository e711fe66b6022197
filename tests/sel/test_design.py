"""Predictive variance and the choice of samples against the dense formulas, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sel.sel.design import Known, directions_of, label_gains, predictive_variance, with_samples
from edge_sel.sel.feature_sums import Standard

SEEDS = range(3)


def problem(seed: int, known: int = 12, pool: int = 30, width: int = 9) -> tuple[np.ndarray, np.ndarray, Known]:
    rng = np.random.default_rng(seed)
    rows, units = rng.standard_normal((known, width)), rng.standard_normal((pool, width))
    standard = Standard(np.zeros(width - 1), np.ones(width - 1))
    return rows, units, Known(standard, 0.7, np.zeros((0, width)))


def dense(rows: np.ndarray, strength: float) -> np.ndarray:
    return np.linalg.inv(rows.T @ rows + strength * np.eye(rows.shape[1]))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_variance_is_that_of_the_posterior_however_samples_came(seed):
    rows, units, nothing = problem(seed)
    covariance = dense(rows, nothing.strength)
    expected = ((units @ covariance) * units).sum(1)
    at_once = with_samples(nothing, rows)
    one_by_one = nothing
    for row in rows:
        one_by_one = with_samples(one_by_one, row[None])
    for known in (at_once, one_by_one):
        np.testing.assert_allclose(predictive_variance(known, units), expected, rtol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gain_is_how_much_the_weighted_variance_falls(seed):
    rows, units, nothing = problem(seed)
    known, doubt = with_samples(nothing, rows), np.random.default_rng(seed + 9).random(len(units))
    before = doubt @ predictive_variance(known, units)
    expected = [before - doubt @ predictive_variance(with_samples(known, unit[None]), units) for unit in units]
    np.testing.assert_allclose(label_gains(units, known, doubt), expected, rtol=1e-8)


def test_fewer_directions_choose_the_same_where_features_have_few():
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((4, 50))
    units = rng.standard_normal((80, 4)) @ basis
    nothing = Known(Standard(np.zeros(49), np.ones(49)), 0.5, np.zeros((0, 50)))
    known = with_samples(nothing, units[:5])
    directions = directions_of(units, known, rng.standard_normal((80, 6)))
    np.testing.assert_allclose(directions.T @ directions, np.eye(6), atol=1e-9)
    fewer = known._replace(explained=known.explained @ directions)
    doubt = rng.random(80)
    np.testing.assert_allclose(
        label_gains(units @ directions, fewer, doubt), label_gains(units, known, doubt), rtol=1e-6
    )


def test_what_was_labelled_and_its_copies_have_little_left_to_teach():
    _, units, nothing = problem(1)
    known = with_samples(nothing, units[:1])
    copies = np.concatenate([units[:1], units[:1] + 0.01, units[1:]])
    gains = label_gains(copies, known, np.ones(len(copies)))
    assert gains[:2].max() < gains[2:].max() / 3


def test_who_is_in_doubt_of_nothing_gains_nothing():
    rows, units, nothing = problem(2)
    assert not label_gains(units, with_samples(nothing, rows), np.zeros(len(units))).any()
