"""Soft selection: each candidate passes by chance, and losses are rescaled so that the gradient stays unbiased.

A gate that trains on the hardest samples only follows another objective than the mean loss, and loses to random
selection at the same rate. Here nobody is out: significance moves the *probability* to pass, and each sample that
passes is weighted by the inverse of its own (Horvitz and Thompson). In expectation the step is that of the whole
pool; what significance then buys is less variance, no longer another aim.

One chunk of candidates goes ``overdue -> odds -> draw -> update_ages``. The rate comes from the Sundew controller as
``1 - threshold``: on that scale its loop has gain one whatever the temperature, as with hard thresholds on ranks.

*Unknown samples* (significance NaN: never visited, nothing remembered) pass at the plain rate with weight 1, as under
random selection, and take no part in the ranking of the others.

Only the loss is rescaled: batch normalisation still sees the selected images with equal weights.

Sources: Horvitz & Thompson 1952 (weights); Katharopoulos & Fleuret 2018 (importance sampling of training batches).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy

from edge_sel.sel._array import (
    Array,
    Namespace,
    array_namespace,
    as_float,
    clip,
    device,
    ranks,
    resolve_namespace,
    stable_order,
)


class SoftConfig(NamedTuple):
    """How significance becomes a probability."""

    temperature: float = 0.25
    """In ranks, 0.02 to 10: small approaches a hard threshold, large approaches random selection."""
    floor: float = 0.25
    """Least probability of a known sample, as a share of the rate, 0 to 1: no weight is above about its inverse."""
    max_weight: float = 5.0
    """Weights are cut here. What a sample loses by it is a bias: a share ``1 - max_weight p / mean(p)`` of its say."""


class Odds(NamedTuple):
    """What the draw needs, one entry per candidate."""

    p: Array
    """float[N] in 0..1, the probability to pass."""
    weights: Array
    """float[N] >= 0, of the loss of those that do pass."""


class Ages(NamedTuple):
    """One entry per sample of the data set."""

    waited: Array
    """int32[N], decisions against it since it last passed (or since the start)."""


def middle_rank(significance: Array) -> Array:
    """The rank of each known sample among the known ones; equal values share the middle of their ranks.

    Formula: ``(rank_i + 1/2) / K`` over the K finite values, rank 0 for the least significant

    Without tie-breaking by chance: the chance that would break ties is the one that draws.

    Args:
        significance: float[N]; NaN and infinite values are unknown.

    Returns:
        float[N] between 0 and 1, with mean 1/2 over the known; NaN for the unknown.

    Example:
        >>> import numpy as np
        >>> middle_rank(np.array([7.0, np.nan, 0.1, 7.0, 3.0])).tolist()
        [0.75, nan, 0.125, 0.75, 0.375]
    """
    xp = array_namespace(significance)
    s = as_float(significance)
    known = xp.isfinite(s)
    count = xp.sum(xp.astype(known, s.dtype))
    lowest = xp.astype(ranks(xp.where(known, s, xp.inf)), s.dtype)
    from_top = xp.argsort(stable_order(xp.where(known, s, -xp.inf), descending=True), stable=True)
    highest = count - 1 - xp.astype(from_top, s.dtype)
    return xp.where(known, (0.5 * (lowest + highest) + 0.5) / xp.where(count > 0, count, 1.0), xp.nan)


def odds(config: SoftConfig, significance: Array, rate: float | Array, overdue: Array | None = None) -> Odds:
    """Probabilities that follow significance and average to the rate, and the weights that make up for them.

    Formula: ``p_i = m + (1 - m) sigmoid((s_i - c) / T)``, ``s`` the middle rank, ``m = floor rate`` and ``c`` such
    that the mean of p over all ranks is the rate; unknown: ``p_i = rate``; overdue: ``p_i = 1``;
    ``w_i = min(mean(p) / p_i, max_weight)``

    So ``E[sum_i mask_i w_i x_i] = mean(p) sum_i x_i`` for any x, as long as no weight is cut, and the samples that
    pass have weights of mean 1. That holds for the overdue too: whoever passes for sure counts ``mean(p)``, because 1
    would count it twice beside the weights above 1 it may win in earlier draws.

    Args:
        config: temperature, floor and largest weight.
        significance: float[N]; NaN and infinite values are unknown.
        rate: share to pass, above 0 and below 1, a float or a 0-d array. The overdue come on top.
        overdue: bool[N], who passes for sure.

    Returns:
        Probabilities and weights, float[N] each.
    """
    xp = array_namespace(significance)
    s = middle_rank(significance)
    known = xp.isfinite(s)
    rate = xp.asarray(rate, dtype=s.dtype, device=device(s))
    floor = config.floor * rate
    centre = _centre((rate - floor) / (1 - floor), config.temperature)
    z = (xp.where(known, s, 0.5) - centre) / config.temperature
    # tanh instead of exp: no overflow.
    p = xp.where(known, floor + (1 - floor) * 0.5 * (1 + xp.tanh(0.5 * z)), rate)
    if overdue is not None:
        p = xp.where(overdue, 1.0, p)
    weights = xp.sum(p) / max(1, p.shape[0]) / xp.where(p > 0, p, 1.0)
    return Odds(p, clip(weights, 0.0, config.max_weight))


def _centre(share: Array, temperature: float) -> Array:
    """The c at which ``sigmoid((s - c) / T)``, averaged over s in 0..1, is ``share``.

    Formula: the average is ``T log((1 + e^((1 - c) / T)) / (1 + e^(-c / T)))``; solved for c, and written with expm1
    so that a small T does not overflow.
    """
    xp = array_namespace(share)
    share = clip(share, 1e-6, 1 - 1e-6)
    upper, lower = -xp.expm1((share - 1) / temperature), -xp.expm1(-share / temperature)
    return 1 - share + temperature * (xp.log(upper) - xp.log(lower))


def draw(p: Array, u: Array) -> Array:
    """Who passes: ``u < p``, bool[N]. Independent draws, so ``E[mask] = p`` exactly, if ``u`` is uniform in [0, 1)."""
    return u < p


def init_ages(n: int, xp: Namespace = numpy, *, device: object = None) -> Ages:
    """Nobody has waited yet."""
    return Ages(resolve_namespace(xp).zeros(n, dtype=resolve_namespace(xp).int32, device=device))


def overdue(ages: Ages, indices: Array, limit: float) -> Array:
    """Who would otherwise risk ``limit`` decisions in a row without passing, bool[B].

    Formula: ``waited_i + 1 >= limit``, so that any ``ceil(limit)`` decisions on a sample contain one in its favour

    Args:
        ages: of the data set.
        indices: int[B], the candidates.
        limit: in decisions; a sample that passes at the rate r waits 1/r on average.
    """
    return ages.waited[indices] + 1 >= limit


def update_ages(ages: Ages, indices: Array, mask: Array) -> Ages:
    """The ages after a decision; those not asked about do not age.

    Args:
        ages: before; not modified.
        indices: int[B], the candidates, all different.
        mask: bool[B], who passed.
    """
    xp = array_namespace(ages.waited)
    waited = xp.asarray(ages.waited, copy=True)
    waited[indices] = xp.where(mask, xp.zeros_like(waited[indices]), waited[indices] + 1)
    return Ages(waited)


def prune_easy(losses: Array, u: Array, ratio: float = 0.5) -> tuple[Array, Array]:
    """Leave out some of the samples below the mean loss, and let the others of them make up for it.

    Formula: ``kept_i = loss_i >= mean(loss) or u_i >= ratio``; ``w_i = 1 / (1 - ratio)`` below the mean, else 1

    Args:
        losses: float[N] in nats; NaN is kept with weight 1, and does not count in the mean.
        u: uniform[N] in 0..1.
        ratio: of those below the mean that go, 0 to below 1.

    Returns:
        Who stays, bool[N], and the weights of the losses, float[N]: ``E[kept_i w_i] = 1`` for every sample.

    Source: InfoBatch (Qin et al. 2024).
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio {ratio} is not a share below 1")
    xp = array_namespace(losses, u)
    x = as_float(losses)
    known = xp.isfinite(x)
    count = xp.sum(xp.astype(known, x.dtype))
    below = x < xp.sum(xp.where(known, x, 0.0)) / xp.where(count > 0, count, 1.0)
    return ~below | (u >= ratio), xp.where(below, 1 / (1 - ratio), xp.ones_like(x))


def relative_importance(losses: Array, keep: float) -> Array:
    """Selective backprop: how likely a sample is to be drawn, by the rank of its loss within the batch.

    Formula: ``p_i ∝ ((rank_i + 1) / N) ^ (1 / keep - 1)``, rank 0 for the smallest loss

    Args:
        losses: float[N]; NaN ranks highest.
        keep: the share that will be drawn, above 0 and not above 1; 1 makes all alike.

    Returns:
        float[N] that sums to 1.

    Source: Composer's selective backpropagation, after Jiang et al. 2019.
    """
    xp = array_namespace(losses)
    x = as_float(losses)
    p = ((xp.astype(ranks(x), x.dtype) + 1) / max(1, x.shape[0])) ** (1 / keep - 1)
    return p / xp.sum(p)
