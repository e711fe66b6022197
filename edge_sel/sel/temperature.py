"""Temperature scaling: the factor of logits at which their probabilities fit the labels best."""

from __future__ import annotations

from edge_sel.sel._array import Array, array_namespace

_NEWTON = 8
"""Steps to the best temperature."""
_MOST_SCALE = 100.0


def best_scale(logits: Array, right: Array, weights: Array) -> float:
    """Where the weighted cross-entropy of scaled logits is least; it is convex, so Newton's steps find it.

    Args:
        logits: float64[N, C].
        right: bool[N, C], the class of each sample.
        weights: float64[N].

    Source: Guo et al. 2017.
    """
    xp = array_namespace(logits)
    own = xp.sum(xp.where(right, logits, xp.zeros_like(logits)), axis=1)
    spread = float(xp.mean(xp.std(logits, axis=1)))
    scale = 1 / max(spread, 1e-12)
    for _ in range(_NEWTON):
        probabilities = softmax(scale * logits)
        mean = xp.sum(probabilities * logits, axis=1)
        slope = float(xp.sum(weights * (mean - own)))
        curve = float(xp.sum(weights * (xp.sum(probabilities * logits * logits, axis=1) - mean * mean)))
        step = slope / curve if curve > 0 else 0.0
        scale = min(max(scale - step, scale / 3), 3 * scale)
    most = _MOST_SCALE / max(spread, 1e-12)
    return float(min(scale, most))


def cross_entropies(logits: Array, right: Array) -> Array:
    """float64[N] in nats; ``right`` is bool[N, C]."""
    xp = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    own = xp.sum(xp.where(right, shifted, xp.zeros_like(shifted)), axis=1)
    return xp.log(xp.sum(xp.exp(shifted), axis=1)) - own


def softmax(logits: Array) -> Array:
    """Probabilities, as the logits [N, C]."""
    xp = array_namespace(logits)
    powers = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
    return powers / xp.sum(powers, axis=1, keepdims=True)
