"""What a suite of systems is run with. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_sel.reference.setup import FirstWeights, Scale, Setup
from edge_sel.reference.systems import System


@dataclass(frozen=True)
class SuiteOptions:
    """What a suite may be told."""

    scale: Scale
    data: str
    out: Path
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    weights: FirstWeights = "auto"
    model: str | None = None
    epochs: int | None = None
    image_size: int | None = None

    def setup(self, system: System) -> Setup:
        """What a system trains with under these options."""
        return system.at(self.scale, model=self.model, epochs=self.epochs, image_size=self.image_size)
