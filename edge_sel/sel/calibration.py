"""Whether probabilities are as sure as they are right, and the temperature at which they fit the labels best."""

from __future__ import annotations

from edge_sel.sel._array import Array, array_namespace, as_float, class_members
from edge_sel.sel.embarrassment import log_softmax

_NEWTON = 8
"""Steps to the best temperature."""
_MOST_SCALE = 100.0
_CLOSE = 1e-3
"""Change of the scale, relative, at which it is found: the next one would be of the square of this."""
_BINS = 15


def best_scale(logits: Array, labels: Array, weights: Array, start: float | None = None) -> float:
    """Where the weighted cross-entropy of scaled logits is least; it is convex, so Newton's steps find it.

    Args:
        logits: float64[N, C].
        labels: int[N].
        weights: float64[N].
        start: where to begin; by default where logits deviate by 1.

    Source: Guo et al. 2017.
    """
    xp = array_namespace(logits)
    own = xp.sum(xp.where(class_members(labels, logits.shape[1]), logits, xp.zeros_like(logits)), axis=1)
    spread = max(float(xp.mean(xp.std(logits, axis=1))), 1e-12)
    scale = start or 1 / spread
    for _ in range(_NEWTON):
        probabilities = xp.exp(log_softmax(scale * logits))
        mean = xp.sum(probabilities * logits, axis=1)
        slope = float(xp.sum(weights * (mean - own)))
        curve = float(xp.sum(weights * (xp.sum(probabilities * logits * logits, axis=1) - mean * mean)))
        step = slope / curve if curve > 0 else 0.0
        last, scale = scale, min(max(scale - step, scale / 3), 3 * scale)
        if abs(scale - last) <= _CLOSE * scale:
            break
    return float(min(scale, _MOST_SCALE / spread))


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
