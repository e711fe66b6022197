"""Guilt: which parameters, and which whole output channels, are to blame enough to be updated.

Also the papers' accounting of that work. What really ran is counted from the graph, elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from edge_sel.errors import UsageError
from edge_sel.sel._array import Array, array_namespace, as_float, stable_order

# A gamma is a float or a 0-d array, and stays what it was.
_Scalar = TypeVar("_Scalar")

DECAY = 0.3
"""How much of gamma the published schedule takes away over all stages together."""


def calibrate_gamma(gradients: Sequence[Array], percentile: float) -> Array:
    """The guilt threshold: a percentile of the gradient magnitudes of one calibration batch.

    Formula: ``gamma = percentile_p(|g|)`` over all gradients together, interpolated linearly

    Args:
        gradients: arrays of any shapes, finite.
        percentile: p in 0..100.

    Returns:
        A 0-d array, in the gradients' unit.

    Example:
        >>> import numpy as np
        >>> float(calibrate_gamma([np.array([[1.0, -3.0]]), np.array([2.0])], 50))
        2.0

    Source: SEL README v3 (p = 20); SEL benchmark README (p = 40).
    """
    if not 0 <= percentile <= 100:
        raise UsageError("the guilt percentile must lie in 0..100", where=percentile)
    if not gradients or all(math.prod(g.shape) == 0 for g in gradients):
        raise ValueError("calibrate_gamma needs at least one gradient value")
    xp = array_namespace(*gradients)
    # A full sort: torch.quantile refuses more than 16 M values, which a ResNet-18 nearly has.
    magnitudes = xp.sort(xp.concat([xp.reshape(xp.abs(as_float(g)), (-1,)) for g in gradients]))
    at = percentile / 100 * (magnitudes.shape[0] - 1)
    low = magnitudes[math.floor(at)]
    return low + (magnitudes[math.ceil(at)] - low) * (at - math.floor(at))


def decayed_gamma(gamma: _Scalar, stage_index: int, n_stages: int) -> _Scalar:
    """The guilt threshold of a stage; later stages update more.

    Formula: ``gamma_s = gamma (1 - 0.3 s / S)``: 1.00, 0.94, 0.88, 0.82, 0.76 of gamma for S = 5

    Args:
        gamma: float or 0-d array.
        stage_index: s, from 0.
        n_stages: S.

    Returns:
        What ``gamma`` was: a float or a 0-d array.

    Source: SEL benchmark README, "Stage Configuration".
    """
    if not 0 <= stage_index < n_stages:
        raise ValueError(f"stage {stage_index} is not one of {n_stages}")
    return gamma * (1 - DECAY * stage_index / n_stages)  # type: ignore[operator,return-value]


def element_mask(gradient: Array, gamma: float | Array) -> Array:
    """The papers' mask: which single gradient values survive.

    Formula: ``mask = |g| > gamma``

    Zeroing values after they were computed saves no work, and Adam's momentum still moves a parameter whose
    gradient is zeroed: a budget of channels (``guilty_channels``) saves work, this reproduces the papers.

    Args:
        gradient: float, any shape.
        gamma: float or 0-d array.

    Returns:
        bool, the gradient's shape. NaN does not survive.

    Source: SEL README v3, "Sparse Gradient Updates".
    """
    xp = array_namespace(gradient)
    return xp.abs(gradient) > gamma


def kept_fraction(*masks: Array) -> Array:
    """The share of values that survive all the masks given; the papers' sparsity is one minus this.

    Args:
        *masks: bool arrays of any shapes.

    Returns:
        float64, 0-d, in 0..1 (0 when there are no values).
    """
    xp = array_namespace(*masks)
    kept = sum(xp.sum(mask, dtype=xp.int64) for mask in masks)
    return xp.astype(kept, xp.float64) / max(1, sum(math.prod(mask.shape) for mask in masks))


def guilty_channels(guilt: Array, k: int) -> Array:
    """The ``k`` guiltiest channels.

    Args:
        guilt: float[O], the gradient norm of each output channel. Of equals the lower index wins; NaN never wins
            over a number.
        k: how many; more than O means all.

    Returns:
        int64[min(k, O)], ascending, as a gather wants them.

    Example:
        >>> import numpy as np
        >>> guilty_channels(np.array([1.0, 5.0, 5.0, 7.0]), 2).tolist()
        [1, 3]
    """
    if k < 0:
        raise ValueError(f"cannot choose {k} channels")
    xp = array_namespace(guilt)
    return xp.astype(xp.sort(stable_order(guilt, descending=True)[:k]), xp.int64)


def head_guilt(rows: Array, heads: int) -> Array:
    """The gradient norm of each attention head, of those of the rows that make its query, key and value.

    Formula: ``sqrt(sum over parts and rows of the head of norm²)``, with the rows as [3, heads, D]

    Args:
        rows: float[3·H·D], the gradient norm of each row.
        heads: H.

    Returns:
        float[H].
    """
    xp = array_namespace(rows)
    return xp.sqrt(xp.sum(xp.reshape(rows, (3, heads, -1)) ** 2, axis=(0, 2)))


def rows_of_heads(chosen: Array, heads: int, rows: int) -> Array:
    """The rows that make query, key and value of these heads.

    Args:
        chosen: int64[k], ascending.
        heads: H, how many there are.
        rows: 3·H·D, how many rows there are.

    Returns:
        int64[3·k·D], ascending.

    Example:
        >>> import numpy as np
        >>> rows_of_heads(np.array([1]), 2, 12).tolist()
        [2, 3, 6, 7, 10, 11]
    """
    xp = array_namespace(chosen)
    all_rows = xp.reshape(xp.arange(rows, dtype=xp.int64), (3, heads, -1))
    return xp.reshape(xp.take(all_rows, chosen, axis=1), (-1,))


def nominal_flops(parameters: int, samples: int, sparsity: float = 0.0) -> int:
    """Work as the papers count it: two operations per updated parameter and sample.

    Formula: ``2 floor(P (1 - sparsity)) samples``

    The published Lottery Ticket figure (6.704376 T) needs the floor: a parameter is either kept or not.

    Args:
        parameters: P.
        samples: seen in all, epochs included.
        sparsity: share of the parameters not updated, 0..1.

    Returns:
        Operations. A ResNet-18 at 32x32 really executes about 150 times as many, whatever the sparsity.

    Example:
        >>> nominal_flops(11_173_962, 50_000 * 30) / 1e12
        33.521886
        >>> nominal_flops(11_173_962, 50_000 * 30, sparsity=0.8) / 1e12
        6.704376

    Source: SEL benchmark README, "Results".
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is not a share")
    # Rounded first: 10 * (1 - 0.8) is 1.9999999999999996, which is two parameters, not one.
    return 2 * math.floor(round(parameters * (1 - sparsity), 6)) * samples
