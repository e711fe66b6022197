"""The state of a run as arrays and JSON values, and back: what is stored follows from the fields of its dataclass."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import numpy as np

from edge_sel.arrays import Arrays

State = TypeVar("State")


def flatten(state: Any) -> tuple[Arrays, dict[str, Any]]:
    """Arrays by path such as ``stage/queue``, and everything else by path.

    A field that is annotated as a dataclass or as a named tuple of arrays is taken apart, ``Arrays`` are stored under
    their own names, an array as it is. All else must survive JSON; floats do (shortest round-trip repr).
    """
    tensors: Arrays = {}
    scalars: dict[str, Any] = {}
    for name, kind in _fields(type(state)).items():
        value = getattr(state, name)
        if _is_nested(kind):
            inner_tensors, inner_scalars = flatten(value)
            tensors |= {f"{name}/{key}": array for key, array in inner_tensors.items()}
            scalars |= {f"{name}/{key}": inner for key, inner in inner_scalars.items()}
        elif kind == Arrays:
            tensors |= {f"{name}/{key}": array for key, array in value.items()}
        elif kind in (np.ndarray, Any):
            tensors[name] = np.asarray(value)
        else:
            scalars[name] = value
    return tensors, scalars


def unflatten(kind: type[State], tensors: Arrays, scalars: dict[str, Any]) -> State:
    """The inverse of ``flatten``.

    Raises:
        KeyError: a field is missing, as in the state of another version.
    """
    values: dict[str, Any] = {}
    for name, inner in _fields(kind).items():
        if _is_nested(inner):
            values[name] = unflatten(inner, _under(name, tensors), _under(name, scalars))
        elif inner == Arrays:
            values[name] = _under(name, tensors)
        else:
            values[name] = tensors[name] if inner in (np.ndarray, Any) else scalars[name]
    return kind(**values)


def _fields(kind: Any) -> dict[str, Any]:
    """Names and types; an entry of a named tuple, which may be of another library too, is an array."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in fields(kind)}
    return dict.fromkeys(kind._fields, np.ndarray)


def _is_nested(kind: Any) -> bool:
    return is_dataclass(kind) or hasattr(kind, "_fields")


def _under(name: str, values: dict[str, Any]) -> dict[str, Any]:
    start = f"{name}/"
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
