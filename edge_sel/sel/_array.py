"""The array type and the few helpers that let one implementation serve NumPy and torch."""

from __future__ import annotations

from typing import Any, TypeAlias

import array_api_compat
import numpy as np
from array_api_compat import device as device

Array: TypeAlias = Any
"""A NumPy array or a torch tensor. There is no useful static type for "either"."""

Namespace: TypeAlias = Any
"""An array module: ``numpy``, ``torch`` or what ``array_namespace`` returns."""


def array_namespace(*arrays: Array) -> Namespace:
    """NumPy itself, which keeps to the standard since 2.1, or the array-API view of torch.

    Not ``array_api_compat``'s view of NumPy: it imports all of NumPy, and that takes longer than NumPy's own import.
    """
    if all(isinstance(array, np.ndarray | np.generic) for array in arrays):
        return np
    return array_api_compat.array_namespace(*arrays)


def resolve_namespace(xp: Namespace) -> Namespace:
    """The array-API view of a module, so that callers may simply pass ``numpy`` or ``torch``."""
    return array_namespace(xp.zeros(0))


def as_float(x: Array) -> Array:
    """``x`` in a precision fit for sums: float32 and float64 stay, anything else becomes float32."""
    xp = array_namespace(x)
    return x if x.dtype in (xp.float32, xp.float64) else xp.astype(x, xp.float32)


def class_members(labels: Array, n_classes: int) -> Array:
    """Membership as bool[N, C]; a mask instead of a scatter-add, which the array API lacks."""
    xp = array_namespace(labels)
    # int64 rather than the labels' own type: 300 classes do not fit into uint8.
    classes = xp.arange(n_classes, dtype=xp.int64, device=device(labels))
    return labels[:, None] == classes[None, :]


def clip(x: Array, low: float, high: float) -> Array:
    """``x`` within bounds. Not ``xp.clip``: for torch, older array-api-compat waits for the device in it."""
    xp = array_namespace(x)
    return xp.where(x < low, low, xp.where(x > high, high, x))


def stable_order(x: Array, *, descending: bool = False) -> Array:
    """Indices that sort ``x``; equal values keep their order, NaN comes last either way."""
    xp = array_namespace(x)
    if not descending:
        return xp.argsort(x, stable=True)
    # Negating, not argsort(descending=True): NumPy emulates that by flipping, which would put NaN first.
    return xp.argsort(-as_float(x), stable=True)


def ranks(x: Array) -> Array:
    """The position each value takes when sorted; the inverse of the sorting permutation is its argsort."""
    return array_namespace(x).argsort(stable_order(x), stable=True)
