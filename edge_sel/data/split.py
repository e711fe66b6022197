"""Set samples aside, class by class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_sel.data.images import Int64Array


def stratified_split(
    labels: npt.ArrayLike, fraction: float, rng: np.random.Generator, *, cap: int | None = None
) -> tuple[Int64Array, Int64Array]:
    """Hold out about ``fraction`` of every class.

    A class of two samples or more gives at least one and keeps at least one; a class of one sample keeps it.
    A ``cap`` below the number of classes wins over that minimum: the largest classes then give one each.

    Args:
        labels: int [N].
        fraction: 0 < fraction < 1.
        rng: decides which samples; the same state gives the same split.
        cap: at most this many held samples in total.

    Returns:
        (rest, held): sorted int64 indices, disjoint, together 0..N-1.

    Raises:
        ValueError: ``fraction`` or ``cap`` out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
    if cap is not None and cap < 0:
        raise ValueError(f"cap must not be negative, not {cap}")
    values = np.asarray(labels, dtype=np.int64)
    _, members, sizes = np.unique(values, return_inverse=True, return_counts=True)
    quotas = np.where(sizes < 2, 0, np.clip(np.rint(sizes * fraction), 1, sizes - 1)).astype(np.int64)
    if cap is not None and quotas.sum() > cap:
        quotas = _shrink(quotas, cap)
    chosen = [rng.permutation(np.flatnonzero(members == kind))[:quota] for kind, quota in enumerate(quotas)]
    held = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)
    rest = np.setdiff1d(np.arange(len(values)), held, assume_unique=True)
    return rest.astype(np.int64), held.astype(np.int64)


def _shrink(quotas: Int64Array, cap: int) -> Int64Array:
    """Reduce ``quotas`` to a total of ``cap``: one each first, the remainder in proportion."""
    base = (quotas > 0).astype(np.int64)
    if cap < base.sum():
        largest = np.argsort(-quotas, kind="stable")[:cap]
        base[:] = 0
        base[largest] = 1
        return base
    extra = quotas - base
    share = extra * ((cap - base.sum()) / extra.sum())
    result: Int64Array = base + np.floor(share).astype(np.int64)
    remainder = np.argsort(np.floor(share) - share, kind="stable")[: cap - result.sum()]
    result[remainder] += 1
    return result
