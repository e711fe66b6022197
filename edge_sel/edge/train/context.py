"""What a session lends to its rungs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sel.arrays import Arrays
from edge_sel.config.settings import Settings
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.train.gate import Gate
from edge_sel.engines.base import Engine
from edge_sel.pack.reader import Pack

if TYPE_CHECKING:
    from edge_sel.edge.train.stage import RungRunner


class Stopped(Exception):  # noqa: N818 (a decision, not an error)
    """The session was told to stop; ``Progress`` is at a step boundary.

    ``weights`` are those to judge and to write, None if there is no time for that.
    """

    def __init__(self, reason: str, weights: Arrays | None = None) -> None:
        self.reason, self.weights = reason, weights
        super().__init__(reason)


@dataclass
class RungContext:
    """What a rung works with; all of it outlives the rung."""

    pack: Pack
    engine: Engine
    images: ImageSet
    gate: Gate
    settings: Settings
    folder: Path
    """Of the run; features may be kept there."""
    at_boundary: Callable[[RungRunner], None]
    """Called after every step and epoch, when the state can be saved; may raise ``Stopped``."""
    end_epoch: Callable[[RungRunner, Mapping[str, Any]], None]
    """Called with the figures of a finished epoch."""
    emit: Callable[..., None]
    """Tells an event: its kind and its figures."""
    cpu_time: Callable[[], float]
    """Processor seconds of this process."""
    phase: Callable[[str], AbstractContextManager[None]]
    """Tells the energy recorder what the joules are spent on."""
