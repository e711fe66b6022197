"""Significance: how much a gradient on each sample is worth, by the two published scores."""

from __future__ import annotations

from edge_sel.sel._array import Array, array_namespace, as_float


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
