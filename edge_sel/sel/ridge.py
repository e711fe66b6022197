"""The head in closed form: ridge regression of what the old head got wrong, its strength chosen by leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge_sel.sel._array import Array, Namespace, array_namespace, class_members, device

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""λ to try, in units of the mean eigenvalue of the features' scatter matrix."""
STEPS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Lengths of the step to try: the residual is a direction in the space of logits, not a distance."""

_NOTHING = 1e-9
"""Scatter of features, relative to the square of their mean, that is rounding."""


class HeadFit(NamedTuple):
    """A head for features φ: logits are ``weight φ + bias``."""

    weight: Array
    """float[C, F], as the old one."""
    bias: Array
    """float[C]."""
    ridge: float
    """λ that was chosen, in units of the mean eigenvalue; infinite where the old head was kept."""
    step: float
    """Length that was chosen, 0 where the old head was kept."""
    loss: float
    """Mean cross-entropy of the samples, each under the head that was fitted without it, nats."""
    old_loss: float
    """The same under the old head."""


class _Scatter(NamedTuple):
    """Centred features in the coordinates of their scatter matrix."""

    mean: Array
    values: Array
    """float64[K], K = min(N, F): eigenvalues."""
    vectors: Array
    """float64[F, K]."""
    coordinates: Array
    """float64[N, K] of each sample."""


def fit_head(
    features: Array,
    labels: Array,
    weight: Array,
    bias: Array,
    *,
    ridges: Sequence[float] = RIDGES,
    steps: Sequence[float] = STEPS,
) -> HeadFit:
    """The old head, corrected as far as the samples support it.

    Formula: with ``R = onehot(y) - softmax(W φ + b)`` and centred features Φ, the correction is
    ``s Rᵀ Φ (ΦᵀΦ + λ I)⁻¹``, and ``s`` times the mean of R on the bias. λ and s give the least mean cross-entropy of
    every sample under the correction that was fitted to the others, which is exact and needs no second fit:
    ``r̂₋ᵢ = rᵢ - (rᵢ - r̂ᵢ) / (1 - hᵢ)``, ``hᵢ = 1/N + φᵢᵀ(ΦᵀΦ + λ I)⁻¹φᵢ``.

    Args:
        features: float[N, F], N at least 2.
        labels: int[N] in 0..C-1; classes that are new to the head have rows in it.
        weight: float[C, F] of the old head, the prior.
        bias: float[C].
        ridges: λ to try, in units of the mean eigenvalue of ΦᵀΦ.
        steps: s to try.

    Returns:
        The head that does best; the old one where no correction does better.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 7.10 (leave-one-out of a linear fit).
    """
    xp = array_namespace(features)
    scatter = _scatter(features)
    old_logits = xp.astype(features, xp.float64) @ xp.astype(weight, xp.float64).T + xp.astype(bias, xp.float64)
    right = class_members(labels, weight.shape[0])
    residual = xp.astype(right, xp.float64) - _softmax(old_logits)
    old_loss = _cross_entropy(old_logits, right)
    unit = float(xp.mean(scatter.values))
    if unit <= _NOTHING * float(xp.sum(scatter.mean * scatter.mean)):  # the samples are all alike, but for rounding
        unit = 0.0
    best = HeadFit(weight, bias, float("inf"), 0.0, old_loss, old_loss)
    for ridge in ridges if unit > 0 else ():
        left_out = _left_out(scatter, residual, ridge * unit)
        for step in steps:
            loss = _cross_entropy(old_logits + step * left_out, right)
            if loss < best.loss:
                best = best._replace(ridge=ridge, step=step, loss=loss)
    if best.step == 0.0:
        return best
    correction = (
        best.step * (residual.T @ scatter.coordinates / (scatter.values + best.ridge * unit)) @ scatter.vectors.T
    )
    offset = best.step * xp.mean(residual, axis=0) - correction @ scatter.mean
    return best._replace(
        weight=xp.astype(xp.astype(weight, xp.float64) + correction, weight.dtype),
        bias=xp.astype(xp.astype(bias, xp.float64) + offset, bias.dtype),
    )


def _scatter(features: Array) -> _Scatter:
    """By the smaller of ΦᵀΦ and ΦΦᵀ."""
    xp = array_namespace(features)
    centred = xp.astype(features, xp.float64)
    mean = xp.mean(centred, axis=0)
    centred = centred - mean
    if centred.shape[1] <= centred.shape[0]:
        values, vectors = xp.linalg.eigh(centred.T @ centred)
        return _Scatter(mean, _not_negative(values), vectors, centred @ vectors)
    values, samples = xp.linalg.eigh(centred @ centred.T)
    lengths = xp.sqrt(_not_negative(values))
    vectors = centred.T @ samples / xp.where(lengths > 0, lengths, xp.ones_like(lengths))
    return _Scatter(mean, _not_negative(values), vectors, samples * lengths)


def _left_out(scatter: _Scatter, residual: Array, ridge: float) -> Array:
    """float64[N, C]: the residual of each sample as predicted from the others."""
    xp = array_namespace(residual)
    inverse = 1 / (scatter.values + ridge)
    solved = inverse[:, None] * (scatter.coordinates.T @ residual)
    fitted = xp.mean(residual, axis=0) + scatter.coordinates @ solved
    leverage = 1 / residual.shape[0] + (scatter.coordinates * scatter.coordinates) @ inverse
    rest = xp.where(leverage < 1, 1 - leverage, xp.ones_like(leverage))
    return residual - (residual - fitted) / rest[:, None]


def _not_negative(values: Array) -> Array:
    """Eigenvalues of a scatter matrix without the rounding."""
    xp = array_namespace(values)
    return xp.where(values > 0, values, xp.zeros_like(values))


def _softmax(logits: Array) -> Array:
    xp = array_namespace(logits)
    powers = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
    return powers / xp.sum(powers, axis=1, keepdims=True)


def _cross_entropy(logits: Array, right: Array) -> float:
    xp: Namespace = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    chosen = xp.sum(xp.where(right, shifted, xp.zeros((), dtype=shifted.dtype, device=device(shifted))), axis=1)
    return float(xp.mean(xp.log(xp.sum(xp.exp(shifted), axis=1)) - chosen))
