"""Checkpoints that survive a power cut: temp file, fsync, rename, fsync of the folder; the last two are kept.

The content's hash stands in the file name, so a file that a failing card has changed is passed over for the older one.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.files import write_durably

KEEP = 2
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
    target = folder / f"checkpoint-{number:06d}-{digest}.safetensors"
    write_durably(target, content)
    # A power cut while one was written left its temporary file behind, under a name that never comes again.
    for old in [*(path for _, path in existing[: -(KEEP - 1)]), *folder.glob(".checkpoint-*.tmp")]:
        with suppress(OSError):  # where files share blocks, a full disk refuses even that; the next one tries again
            old.unlink(missing_ok=True)
    return target


def load_checkpoint(folder: Path) -> tuple[Arrays, dict[str, Any], dict[str, Any], Path] | None:
    """The newest undamaged checkpoint as (tensors, scalars, identity, path); None when there is none."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    for _, path in reversed(list_checkpoints(folder)):
        match = _NAME.fullmatch(path.name)
        try:
            content = path.read_bytes()
            if match is None or hashlib.sha256(content).hexdigest()[:16] != match[2]:
                continue
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
            return load(content), json.loads(metadata["scalars"]), json.loads(metadata["identity"]), path
        except (OSError, SafetensorError, KeyError, ValueError):
            continue
    return None


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of every checkpoint file, oldest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint, and what a write that was cut off left of one."""
    for path in folder.glob("*checkpoint*.safetensors*"):
        path.unlink(missing_ok=True)
