"""Checkpoints that survive a power cut: temp file, fsync, rename, fsync of the folder; the last two are kept.

The content's hash stands in the file name, so a file that a failing card has changed is passed over for the older one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.files import cannot_write, refuse_link, regular_size, write_durably

Checkpoint = tuple[Arrays, dict[str, Any], dict[str, Any], Path]
"""Tensors, scalars, identity, path."""

KEEP = 2
LONGEST_HEADER = 100_000_000
"""As safetensors has it."""
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
    from safetensors.numpy import save

    metadata = {"scalars": json.dumps(scalars), "identity": json.dumps(identity, sort_keys=True)}
    content = save({name: np.asarray(value, order="C") for name, value in tensors.items()}, metadata)
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
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    for _, path in reversed(list_checkpoints(folder)):
        match = _NAME.fullmatch(path.name)
        try:
            if match is None or not _has_its_length(path):
                continue
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] != match[2]:
                continue
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
            found = load(content), json.loads(metadata["scalars"]), json.loads(metadata["identity"]), path
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            continue
        yield found


def _has_its_length(path: Path) -> bool:
    """Whether a file is as long as its header says: a pipe, or gigabytes of zeros, are not even read.

    Raises:
        OSError: it cannot be read.
        ValueError: it has no header.
    """
    size = regular_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size, LONGEST_HEADER):
            return False
        header = dict(json.loads(file.read(length)))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return bool(size == 8 + length + max(ends, default=0))


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
