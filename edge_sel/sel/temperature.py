"""Temperature scaling: the factor of logits at which their probabilities fit the labels best."""

from __future__ import annotations

from edge_sel.sel._array import Array, array_namespace, class_members
from edge_sel.sel.embarrassment import log_softmax

_NEWTON = 8
"""Steps to the best temperature."""
_MOST_SCALE = 100.0


def best_scale(logits: Array, labels: Array, weights: Array) -> float:
    """Where the weighted cross-entropy of scaled logits is least; it is convex, so Newton's steps find it.

    Args:
        logits: float64[N, C].
        labels: int[N].
        weights: float64[N].

    Source: Guo et al. 2017.
    """
    xp = array_namespace(logits)
    own = xp.sum(xp.where(class_members(labels, logits.shape[1]), logits, xp.zeros_like(logits)), axis=1)
    spread = max(float(xp.mean(xp.std(logits, axis=1))), 1e-12)
    scale = 1 / spread
    for _ in range(_NEWTON):
        probabilities = xp.exp(log_softmax(scale * logits))
        mean = xp.sum(probabilities * logits, axis=1)
        slope = float(xp.sum(weights * (mean - own)))
        curve = float(xp.sum(weights * (xp.sum(probabilities * logits * logits, axis=1) - mean * mean)))
        step = slope / curve if curve > 0 else 0.0
        scale = min(max(scale - step, scale / 3), 3 * scale)
    return float(min(scale, _MOST_SCALE / spread))
