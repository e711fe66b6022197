"""The head in closed form: ridge regression of what the old head got wrong, its strength chosen by leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

from edge_sel.sel._array import Array, Namespace, array_namespace, class_members, device

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""λ to try, in units of the mean eigenvalue of the features' scatter matrix."""
STEPS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Lengths of the step to try: the residual is a direction in the space of logits, not a distance."""
SCALES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
"""Factors of the old logits to try: one over temperatures."""

_NOTHING = 1e-9
"""Scatter of features, relative to the square of their mean, that is rounding."""


class HeadFit(NamedTuple):
    """A head for features φ: logits are ``weight φ + bias``."""

    weight: Array
    """float[C, F], as the old one."""
    bias: Array
    """float[C]."""
    scale: float
    """Of the old logits, before the correction; it changes no prediction."""
    ridge: float
    """λ that was chosen, in units of the mean eigenvalue; infinite where there is no correction."""
    step: float
    """Length that was chosen, 0 where there is no correction."""
    loss: float
    """Mean cross-entropy of the samples, each under the head that was fitted without it, nats."""
    old_loss: float
    """The same under the old head."""
    left_out: Array
    """float64[N, C], logits of each sample under the head that was fitted without it."""


class _Scatter(NamedTuple):
    """Centred features in the coordinates of their scatter matrix."""

    mean: Array
    values: Array
    """float64[K], K = min(N, F): eigenvalues."""
    vectors: Array
    """float64[F, K]."""
    coordinates: Array
    """float64[N, K] of each sample."""


class _Candidate(NamedTuple):
    """One correction: its λ and s, how much it changes the samples' logits, and their losses when left out."""

    ridge: float
    step: float
    change: float
    losses: Array
    """float64[N]."""


def fit_head(
    features: Array,
    labels: Array,
    weight: Array,
    bias: Array,
    *,
    ridges: Sequence[float] = RIDGES,
    steps: Sequence[float] = STEPS,
    scales: Sequence[float] = SCALES,
) -> HeadFit:
    """The old head, corrected as far as the samples support it.

    Formula: the old logits times the scale that gives the least cross-entropy (temperature scaling), then, with
    ``R = onehot(y) - softmax(old logits)`` and centred features Φ, the correction ``s Rᵀ Φ (ΦᵀΦ + λ I)⁻¹`` of the
    weight, and ``s`` times the mean of R on the bias. Each λ and s is judged by the cross-entropy of every sample under
    the correction that was fitted to the others, which is exact and needs no second fit:
    ``r̂₋ᵢ = rᵢ - (rᵢ - r̂ᵢ) / (1 - hᵢ)``, ``hᵢ = 1/N + φᵢᵀ(ΦᵀΦ + λ I)⁻¹φᵢ``. Of those that are not worse than the best
    by more than one standard error, the one that changes least is taken. Of a class that has no sample, R is 0: the
    softmax that it is made of is one over the classes that have some, for nothing was learnt of the others.

    Args:
        features: float[N, F], N at least 2.
        labels: int[N] in 0..C-1; classes that are new to the head have rows in it.
        weight: float[C, F] of the old head, the prior.
        bias: float[C].
        ridges: λ to try, in units of the mean eigenvalue of ΦᵀΦ.
        steps: s to try.
        scales: of the old logits, to try.

    Returns:
        The head that does best; the old one where nothing does better.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 7.10 (leave-one-out of a linear fit;
    the one-standard-error rule); Guo et al. 2017 (temperature scaling); Caccia et al. 2022 (no gradient to the logits
    of classes that are not there).
    """
    xp = array_namespace(features)
    scatter = _scatter(features)
    logits = xp.astype(features, xp.float64) @ xp.astype(weight, xp.float64).T + xp.astype(bias, xp.float64)
    right = class_members(labels, weight.shape[0])
    old_loss = float(xp.mean(_losses(logits, right)))
    # Of equal ones the nearest to none: logits that are all alike have every scale for the best.
    scale = min(scales, key=lambda factor: (float(xp.mean(_losses(factor * logits, right))), abs(log(factor))))
    logits = scale * logits
    met = xp.any(right, axis=0)
    residual = xp.astype(right, xp.float64) - _softmax(xp.where(met, logits, float("-inf")))
    unit = float(xp.mean(scatter.values))
    if unit <= _NOTHING * float(xp.sum(scatter.mean * scatter.mean)):  # the samples are all alike, but for rounding
        unit = 0.0
    candidates = [_Candidate(float("inf"), 0.0, 0.0, _losses(logits, right))]
    for ridge in ridges if unit > 0 else ():
        predicted = _left_out(scatter, residual, ridge * unit)
        length = float(xp.sum(predicted * predicted)) ** 0.5
        candidates += [
            _Candidate(ridge, step, step * length, _losses(logits + step * predicted, right)) for step in steps
        ]
    chosen = _least_change(candidates)
    if chosen.step > 0:
        logits = logits + chosen.step * _left_out(scatter, residual, chosen.ridge * unit)
    fit = HeadFit(weight, bias, scale, chosen.ridge, chosen.step, float(xp.mean(chosen.losses)), old_loss, logits)
    if scale == 1.0 and not chosen.step:
        return fit
    correction, offset = xp.zeros_like(scatter.vectors[:1, :1]), xp.zeros_like(scatter.mean[:1])
    if chosen.step > 0:
        solved = scatter.coordinates / (scatter.values + chosen.ridge * unit)
        correction = chosen.step * (residual.T @ solved) @ scatter.vectors.T
        offset = chosen.step * xp.mean(residual, axis=0) - correction @ scatter.mean
    return fit._replace(
        weight=xp.astype(scale * xp.astype(weight, xp.float64) + correction, weight.dtype),
        bias=xp.astype(scale * xp.astype(bias, xp.float64) + offset, bias.dtype),
    )


def _least_change(candidates: Sequence[_Candidate]) -> _Candidate:
    """The one-standard-error rule, for differences between the losses of the same samples."""
    xp = array_namespace(candidates[0].losses)
    best = min(candidates, key=lambda candidate: float(xp.mean(candidate.losses)))

    def good(candidate: _Candidate) -> bool:
        worse = candidate.losses - best.losses
        return bool(float(xp.mean(worse)) <= float(xp.std(worse)) / len(worse) ** 0.5)

    return min((candidate for candidate in candidates if good(candidate)), key=lambda candidate: candidate.change)


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


def _losses(logits: Array, right: Array) -> Array:
    """float64[N], cross-entropy of each sample in nats."""
    xp: Namespace = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    chosen = xp.sum(xp.where(right, shifted, xp.zeros((), dtype=shifted.dtype, device=device(shifted))), axis=1)
    return xp.log(xp.sum(xp.exp(shifted), axis=1)) - chosen
