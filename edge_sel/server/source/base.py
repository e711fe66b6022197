"""What an export needs of a classifier, wherever it comes from, and what the user said about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Engine
from edge_sel.errors import BadInputError, GraphError, UsageError
from edge_sel.graphs.ir import Forward
from edge_sel.graphs.plans import running_statistics
from edge_sel.pack.graph_check import OPERATORS
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


def forward_weights(forward: Forward) -> Arrays:
    """Parameters and running statistics by name."""
    names = {*forward.parameters, *running_statistics(forward)}
    return {name: value for name, value in forward.initializers.items() if name in names}


@dataclass(frozen=True)
class Asked:
    """What the user said about a source.

    Attributes:
        classes: names of its classes, in the order of its logits.
        folders: the class folders of the images, sorted; None where there are none.
        image_size: (height, width) in pixels.
        mean: to normalise by, in 0..1.
        std: likewise.
        weights: a file of weights for a model that is made by name or by a factory.
        new_head: fit a head for these classes instead of the model's own.
        dry: nothing is to be computed with the weights, so none are loaded.
    """

    classes: tuple[str, ...] | None = None
    folders: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    weights: Path | None = None
    new_head: bool = False
    dry: bool = False

    @property
    def names(self) -> tuple[str, ...] | None:
        """Class names that are wanted, if any are known."""
        return self.classes or self.folders

    def class_names(self, logits: int, where: object) -> tuple[tuple[str, ...], bool]:
        """The names of the classes, and whether they need a new head.

        Raises:
            UsageError: the model has another number of logits.
        """
        if logits == 1 and not self.new_head:
            raise UsageError("the model has one logit, and a classifier has one for each class", where=where,
                             fix="fit a head for the classes of --data with --new-head")  # fmt: skip
        if self.names is None:
            return tuple(f"class {number}" for number in range(logits)), False
        if len(self.names) != logits and not self.new_head:
            whose = "--classes names" if self.classes else "the folder has"
            raise UsageError(
                f"the model has {logits} logits, {whose} {len(self.names)} classes", where=where,
                fix="name the model's own classes with --classes FILE, or fit a head for these with --new-head",
            )  # fmt: skip
        return self.names, self.new_head


def read_classes(given: Path | Sequence[str]) -> tuple[str, ...]:
    """One class name a line of a file, in the order of the logits; an empty last line does not count. Or these names.

    Raises:
        BadInputError: no such file, not text, an empty line, or a name twice.
    """
    if not isinstance(given, Path):
        where, lines = "classes", list(given)
    else:
        where = str(given)
        try:
            lines = given.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise BadInputError(f"the class names cannot be read ({reason})", where=given) from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    empty = next((number for number, name in enumerate(names, 1) if not name or not name.isprintable()), None)
    if not names or empty is not None:
        raise BadInputError("a line has no class name", where=f"{where}, line {empty or 1}", fix="one name per line")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInputError(f"class {twice} occurs twice", where=where)
    return tuple(names)


def first_line(error: BaseException) -> str:
    """What an error of another program says, in one line."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def require_operators(forward: Forward, where: object) -> None:
    """GraphError that names the first node which no pack may hold, whether it is trained or not."""
    node = next((node for node in forward.nodes if node.op not in OPERATORS), None)
    if node is not None:
        place = f"{where}: {node.name or node.outputs[0]}"
        raise GraphError(f"operator {node.op} is not one that a pack may use", where=place,
                         fix="write it with other operators")  # fmt: skip


def replace_all(field: Any, values: Iterable[Any]) -> None:
    """Give a repeated field of a protobuf message these values instead of its own."""
    kept = list(values)
    del field[:]
    field.extend(kept)
