"""Experts for the cells of the benchmark: what a server makes of a device's signature."""

from __future__ import annotations

from pathlib import Path

from cifar10_field import edge_sel

from edge_sel.errors import UsageError
from field.cells import CAMERA, Cell, Start

SERVER_PER_CLASS = 1200
"""Images of the server that an expert is trained on."""


def expert_of(cell: Cell, start: Start) -> Path:
    """Where the expert for a cell lies, for those that start there."""
    return start.pack.parent / "experts" / f"{start.pack.stem}-{cell.shift}-{cell.seed}.safetensors"


def other_place(cell: Cell) -> Cell:
    """The same seed under the next camera: its expert is the control."""
    names = [name for name, camera in CAMERA.items() if camera is not None]
    after = names[(names.index(cell.shift) + 1) % len(names)] if cell.shift in names else names[0]
    return cell._replace(shift=after)


def make_expert(cell: Cell, start: Start) -> None:
    """Sign the cell's images as a device does, and train for that place on the server's images; once.

    Raises:
        UsageError: the server's images lie in no folder.
    """
    expert = expert_of(cell, start)
    if start.server is None:
        raise UsageError("no expert without a folder of the server's images", fix="leave out --short")
    if expert.exists():
        return
    expert.parent.mkdir(parents=True, exist_ok=True)
    place = expert.with_suffix(".json")
    place.unlink(missing_ok=True)
    edge_sel("signature", start.pack, "--data", cell.field, "--out", place)
    edge_sel(
        "expert", start.pack, place, "--data", start.server, "--limit-per-class", SERVER_PER_CLASS, "--out", expert
    )
