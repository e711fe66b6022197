"""Checkpoints that survive a power cut: temp file, fsync, rename, fsync of the folder; the last two are kept.

The content's hash stands in the file name, so a file that a failing card has changed is passed over for the older one.
The state of a run is stored as arrays and JSON values: what is stored follows from the fields of its dataclass. A run
with another identity is never continued or overwritten.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from edge_sel.arrays import Arrays, TensorPlace, read_header, tensor_bytes, view
from edge_sel.errors import UsageError
from edge_sel.files import cannot_write, refuse_link, regular_size, write_durably
from edge_sel.schema import parse_json

State = TypeVar("State")
Identity = dict[str, Any]
"""What a run is a run of."""
Checkpoint = tuple[Arrays, dict[str, Any], dict[str, Any], Path]
"""Tensors, scalars, identity, path."""

KEEP = 2
MOST_HEADER_BYTES = 100_000_000
"""Every epoch of a long run stands in it."""
_NAME = re.compile(r"checkpoint-(\d{6})-([0-9a-f]{16})\.safetensors")


def save_checkpoint(folder: Path, tensors: Arrays, scalars: dict[str, Any], identity: dict[str, Any]) -> Path:
    """Write the next checkpoint and remove all but the last ``KEEP``.

    Args:
        folder: the run's checkpoint folder; made when missing.
        tensors: arrays by name.
        scalars: JSON-able values.
        identity: what the run is a run of (pack, images, settings); compared on resume.

    Raises:
        SetupError: the disk is full or the place cannot be written; earlier checkpoints stay.
    """
    metadata = {"scalars": json.dumps(scalars), "identity": json.dumps(identity, sort_keys=True)}
    content = tensor_bytes(tensors, metadata)
    digest = hashlib.sha256(content).hexdigest()[:16]
    existing = list_checkpoints(folder)
    number = 1 + max((n for n, _ in existing), default=0)
    try:
        refuse_link(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    target = folder / f"checkpoint-{number:06d}-{digest}.safetensors"
    write_durably(target, content)
    for _, old in existing[: -(KEEP - 1)]:
        with suppress(OSError):  # such as a folder, which is not ours
            old.unlink(missing_ok=True)
    remove_temporary(folder)
    return target


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint; None when there is none."""
    return next(read_checkpoints(folder), None)


def read_checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """Every undamaged checkpoint as (tensors, scalars, identity, path), the newest first."""
    for _, path in reversed(list_checkpoints(folder)):
        try:
            places, notes = _read_header(path)
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] != path.stem[-16:]:
                continue
            tensors = {name: view(content, place).copy() for name, place in places.items()}
            found = tensors, parse_json(notes["scalars"], finite=False), parse_json(notes["identity"]), path
        except (OSError, KeyError, ValueError, TypeError):
            continue
        yield found


def _read_header(path: Path) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """Checked against the file's length first: a pipe, or gigabytes of zeros, are not even read."""
    size = regular_size(path)
    with path.open("rb") as file:
        return read_header(file, size, MOST_HEADER_BYTES)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of every checkpoint file, oldest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def remove_temporary(folder: Path) -> None:
    """Remove what a power cut left of a write, under a name that never comes again."""
    for path in folder.glob(".checkpoint-*.tmp"):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint, and what a write that was cut off left of one."""
    for path in folder.glob("*checkpoint*.safetensors*"):
        path.unlink(missing_ok=True)


def require_same(found: Mapping[str, Any], wanted: Identity, where: Path, ignored: Collection[str] = ()) -> None:
    """Compare the identity of the run at ``where`` with that of the run to continue.

    Args:
        found: as it was stored.
        wanted: of the run to continue; every value survives JSON.
        where: for the message.
        ignored: keys that may differ.

    Raises:
        UsageError: they differ; names the keys.
    """
    different = [key for key, value in wanted.items() if key not in ignored and found.get(key) != value]
    if different:
        raise UsageError(
            f"cannot resume, these are not what the run began with: {', '.join(different)}",
            where=where,
            fix="give the same options and images, or another --out",
        )


# --- the state of a run as arrays and JSON values, and back


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
