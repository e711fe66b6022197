"""Significance: how much a gradient on each sample is worth, and scales on which a threshold can hold.

The two published scores come first. ``significance_rank`` and ``significance_logistic`` then put any score
on a scale of 0..1 on which a threshold means the same from batch to batch.
"""

from __future__ import annotations

from edge_sel.sel._array import Array, array_namespace, as_float, device, ranks

_LOGISTIC = 1.702  # sigmoid(1.702 z) is within 0.01 of the normal distribution function


def significance_v1(loss: Array, intensity_std: Array) -> Array:
    """How much a sample is worth, relative to its batch.

    Formula: ``0.7 loss / mean(loss) + 0.3 std / mean(std)``; a mean of zero counts as one

    Args:
        loss: float[N] in nats.
        intensity_std: float[N], standard deviation of each image's pixels.

    Returns:
        float[N], with mean 1.

    Source: AST README v1, "Significance Scoring".
    """
    return 0.7 * _relative(loss) + 0.3 * _relative(intensity_std)


def _relative(x: Array) -> Array:
    xp = array_namespace(x)
    x = as_float(x)
    mean = xp.mean(x)
    return x / xp.where(mean == 0, xp.ones_like(mean), mean)


def significance_v101(loss: Array, entropy: Array) -> Array:
    """How much a sample is worth, in absolute terms: it falls as the model learns.

    Formula: ``0.7 loss + 0.3 entropy``

    Args:
        loss: float[N] in nats.
        entropy: float[N] in nats, of the prediction.

    Returns:
        float[N] in nats.

    Source: AST v1.0.1.
    """
    return 0.7 * as_float(loss) + 0.3 * as_float(entropy)


def significance_rank(significance: Array, u: Array | None = None) -> Array:
    """The rank of each sample within its batch.

    Formula: ``(rank_i + 1/2) / N``, rank 0 for the least significant

    Args:
        significance: float[N]. Equal values are ordered by ``u`` if given, else the later is higher. NaN
            and infinite values rank lowest: a sample whose loss diverged must not win the gate.
        u: uniform[N].

    Returns:
        float[N] strictly between 0 and 1, all different.

    Example:
        >>> import numpy as np
        >>> significance_rank(np.array([7.0, 0.1])).tolist()
        [0.75, 0.25]
    """
    xp = array_namespace(significance)
    s = as_float(significance)
    s = xp.where(xp.isfinite(s), s, -xp.inf)
    ascending = ranks(s) if u is None else ranks(s, xp.argsort(u, stable=True))
    return (xp.astype(ascending, s.dtype) + 0.5) / max(1, s.shape[0])


def significance_logistic(significance: Array) -> Array:
    """Standardised within the batch and squashed: unlike the rank it tells an outlier from a narrow winner.

    Formula: ``1 / (1 + exp(-1.702 z))``, ``z = (s - mean(s)) / std(s)``; nearly uniform if s is normal

    Args:
        significance: float[N]. NaN and infinite values become 0, and do not count in mean and deviation.

    Returns:
        float[N] in 0..1; all 0.5 if all are equal.
    """
    xp = array_namespace(significance)
    s = as_float(significance)
    finite = xp.isfinite(s)
    n = xp.maximum(xp.sum(xp.astype(finite, s.dtype)), xp.ones((), dtype=s.dtype, device=device(s)))
    s = xp.where(finite, s, 0.0)
    centred = xp.where(finite, s - xp.sum(s) / n, 0.0)
    std = xp.sqrt(xp.sum(centred * centred) / n)
    # Equal values differ from their own mean by rounding; that must not count as a deviation.
    noise = 16 * xp.finfo(s.dtype).eps * xp.max(xp.abs(s))
    z = xp.where(std > noise, centred / xp.where(std > noise, std, xp.ones_like(std)), xp.zeros_like(s))
    # tanh instead of exp: no overflow for far outliers.
    return xp.where(finite, 0.5 * (1 + xp.tanh(_LOGISTIC / 2 * z)), 0.0)
