"""Whether probabilities are as sure as they are right, and the temperature at which they fit the labels best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge_sel.sel._array import Array, array_namespace, as_float, class_members
from edge_sel.sel.embarrassment import log_softmax

_NEWTON = 10
"""Steps to the best temperature."""
_MOST_SCALE = 100.0
_CLOSE = 1e-3
"""Change of a scale, relative, at which it is found: the next one would be of the square of this."""
_FLAT = 1e-9
"""Share of the curvature that is left where two sets of logits are the same but for rounding."""
_BINS = 15


class Scales(NamedTuple):
    """Factors of logits, and of another model's logits that are added."""

    own: float
    other: float = 0.0


def best_scales(
    logits: Array, labels: Array, weights: Array, other: Array | None = None, start: Scales | None = None
) -> Scales:
    """Where the weighted cross-entropy of ``own · logits + other · other`` is least, no factor negative.

    It is convex, so Newton's steps find it. One factor alone is temperature scaling.

    Args:
        logits: float64[N, C].
        labels: int[N].
        weights: float64[N].
        other: float64[N, C]; None for none.
        start: where to begin; by default where logits deviate by 1.

    Source: Guo et al. 2017; Wolpert 1992 (stacking).
    """
    xp = array_namespace(logits)
    members = class_members(labels, logits.shape[1])
    parts = [logits] if other is None else [logits, other]
    rights = [xp.sum(xp.where(members, part, xp.zeros_like(part)), axis=1) for part in parts]
    spread = max(float(xp.mean(xp.std(logits, axis=1))), 1e-12)
    a, b = start or Scales(1 / spread, 0.0 if other is None else 0.5)
    for _ in range(_NEWTON):
        chances = xp.exp(log_softmax(a * logits if other is None else a * logits + b * other))
        slopes, curves = _derivatives(chances, parts, rights, weights)
        aa, step, change = curves[0][0], 0.0, 0.0
        if aa > 0:
            step = slopes[0] / aa
        if other is not None and (b > 0 or slopes[1] < 0):
            ab, bb = curves[1]
            if (volume := aa * bb - ab * ab) > _FLAT * aa * bb:
                step, change = (bb * slopes[0] - ab * slopes[1]) / volume, (aa * slopes[1] - ab * slopes[0]) / volume
        last = a, b
        a, b = min(max(a - step, a / 3), 3 * a), min(max(b - change, 0.0), 3 * b + 1)
        if abs(a - last[0]) <= _CLOSE * a and abs(b - last[1]) <= _CLOSE * max(b, 1.0):
            break
    return Scales(min(a, _MOST_SCALE / spread), b)


def _derivatives(
    chances: Array, parts: Sequence[Array], rights: Sequence[Array], weights: Array
) -> tuple[list[float], list[list[float]]]:
    """Of the weighted cross-entropy by each part's factor: the slopes, and the curvatures below the diagonal."""
    xp = array_namespace(chances)
    means = [xp.sum(chances * part, axis=1) for part in parts]
    slopes = [float(xp.sum(weights * (mean - own))) for mean, own in zip(means, rights, strict=True)]
    curves = [
        [
            float(xp.sum(weights * (xp.sum(chances * first * second, axis=1) - mean * means[column])))
            for column, second in enumerate(parts[: row + 1])
        ]
        for row, (first, mean) in enumerate(zip(parts, means, strict=True))
    ]
    return slopes, curves


def calibration_error(logits: Array, labels: Array) -> float:
    """Expected calibration error: how far the probability of the predicted class is from the share that is right.

    Formula: ``Σ_b |Σ_{i in b} (right_i - p_i)| / N`` over 15 bins of p of equal width. A prediction that is no number
    counts as surely wrong.

    Args:
        logits: float[N, C].
        labels: int[N].

    Returns:
        0 to 1; of few images it is too large, as chance does not cancel in a bin.

    Source: Guo et al. 2017.

    Example:
        >>> import numpy as np
        >>> round(calibration_error(np.array([[0.0, 0.0], [0.0, 0.0]]), np.array([0, 1])), 4)
        0.0
    """
    xp = array_namespace(logits, labels)
    surest = xp.exp(xp.max(log_softmax(as_float(logits)), axis=1))
    surest = xp.where(xp.isfinite(surest), surest, xp.ones_like(surest))
    gaps = xp.astype(xp.argmax(logits, axis=1) == labels, surest.dtype) - surest
    found: float = 0.0
    for number in range(_BINS):
        inside = (surest > number / _BINS) & (surest <= (number + 1) / _BINS)
        found += abs(float(xp.sum(xp.where(inside, gaps, xp.zeros_like(gaps)))))
    return float(found / logits.shape[0])
