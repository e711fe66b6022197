"""Arrays by name, which several rooms hand to one another, and the safetensors files that hold them.

The header of a file from outside is checked before a library, or a graph, takes its word.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from edge_sel.schema import parse_json

Arrays = dict[str, np.ndarray]
"""Arrays by name, such as all weights of a model."""

Range = tuple[float, float]
"""Least and greatest value of an array."""

KINDS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
MOST_HEADER_BYTES, MOST_TENSORS, MOST_DIMENSIONS = 4 << 20, 10_000, 8
_LONGEST_NAME = 512


class TensorPlace(NamedTuple):
    """Where a tensor stands in the file."""

    kind: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    length: int


def read_header(
    file: BinaryIO, size: int, most: int = MOST_HEADER_BYTES
) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """The tensors of a safetensors file by name, which fill it without a gap and without sharing a byte; and its notes.

    Args:
        file: of which no more than the header is read.
        size: of the whole file, bytes.
        most: bytes of the header.

    Raises:
        ValueError: it is not such a file.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, most):
        raise ValueError("its header is longer than the file")
    header = parse_json(file.read(length))
    if not isinstance(header, dict) or len(header) > MOST_TENSORS:
        raise ValueError("its header is not a table of tensors")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ValueError("its metadata are not strings")
    places = {name: _place(name, entry, 8 + length) for name, entry in header.items()}
    at = 8 + length
    for place in sorted(places.values(), key=lambda place: (place.offset, place.length)):
        if place.offset != at:
            raise ValueError("its tensors overlap, or leave a gap")
        at += place.length
    if at != size:
        raise ValueError("its tensors do not fill it")
    return places, notes


def tensor_places(content: bytes) -> dict[str, TensorPlace]:
    """Where the tensors of a safetensors file stand; ValueError as ``read_header``."""
    return read_header(BytesIO(content), len(content))[0]


def tensor_notes(content: bytes) -> dict[str, str]:
    """What else the header of a safetensors file says; ValueError as ``read_header``."""
    return read_header(BytesIO(content), len(content))[1]


def read_tensors(content: bytes) -> Arrays:
    """Every tensor, as fresh arrays.

    Raises:
        ValueError: it is not a safetensors file of numbers.
    """
    return {name: view(content, place).copy() for name, place in tensor_places(content).items()}


def tensor_bytes(tensors: Mapping[str, np.ndarray], notes: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file, with notes in its header."""
    from safetensors.numpy import save

    content: bytes = save({name: np.asarray(value, order="C") for name, value in tensors.items()}, notes)
    return content


def view(content: bytes, place: TensorPlace) -> np.ndarray:
    """One tensor where it stands, not to be written to."""
    count = place.length // place.kind.itemsize
    return np.frombuffer(content, place.kind, count, place.offset).reshape(place.shape)


def not_finite(content: bytes, places: dict[str, TensorPlace]) -> str | None:
    """The name of a tensor with NaN or an infinity in it."""
    with np.errstate(invalid="ignore"):
        for name, place in places.items():
            if place.kind.kind == "f" and place.length:
                values = view(content, place)
                if not (np.isfinite(values.min()) and np.isfinite(values.max())):  # NaN wins both; no copy is made
                    return name
    return None


def _place(name: str, entry: Any, start: int) -> TensorPlace:
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError("a tensor's name is too long or not printable")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name} is not of type, shape and place")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{name} is of no type that a pack has")
    if not (_counts(shape) and _counts(offsets)) or len(offsets) != 2 or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"shape or place of {name} are no numbers")
    dtype, length, count = np.dtype(KINDS[kind]), offsets[1] - offsets[0], 1
    for size in shape:
        count *= size
    if length != count * dtype.itemsize:
        raise ValueError(f"{name} takes another number of bytes than its shape")
    return TensorPlace(dtype, tuple(shape), start + offsets[0], length)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)
