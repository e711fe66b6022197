"""What an export needs of a classifier, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Engine
from edge_sel.graphs.ir import Forward
from edge_sel.pack.manifest import Tap
from edge_sel.pack.reader import Pack


@dataclass(frozen=True)
class WarmupInfo:
    """What the weights are: model name, class names, input geometry and how they were trained.

    ``held_out`` are the ids of the images that training never saw.
    """

    model: str
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training: dict[str, object]
    held_out: tuple[str, ...] = ()


class Agreement(NamedTuple):
    """Of a plan, over all tensors: the largest distances from the float64 twin, on the batch that told most."""

    ours: float
    reference: float


Check: TypeAlias = Callable[[Pack, Forward, Sequence[Batch], Engine, Callable[[str], None]], dict[str, Agreement]]
"""Compares one step of every plan of a pack, as an engine makes it, with another program; raises GraphError.

The last argument is told what is being done, where that takes long."""


@dataclass(frozen=True)
class Source:
    """A classifier that may become a pack.

    Attributes:
        info: its name, classes, image size and normalisation.
        forward: its inference graph.
        weights: parameters and running statistics by name.
        check: how its packs are checked.
        new_head: whether its head is still to be fitted to the classes.
        folded: whether its batch normalisation was folded into the convolutions.
        taps: layers that its head reads, beside what it always took.
    """

    info: WarmupInfo
    forward: Forward
    weights: Arrays
    check: Check
    new_head: bool = False
    folded: bool = False
    taps: tuple[Tap, ...] = ()
