"""A forward graph as the compiler sees it: plain nodes, initializer arrays, static shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int | None, ...]
"""Static dimensions; ``None`` where the size is only known at run time (batch, classes)."""

BATCH = "batch"
CLASSES = "classes"
LOGITS = "logits"
OPSET = 18
IR_VERSION = 9


@dataclass(frozen=True)
class Node:
    """One operator: type, named inputs ("" = absent) and outputs, attributes as Python values."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def attribute(self, key: str, default: Any) -> Any:
        """An attribute's value, or the operator's default."""
        return self.attributes.get(key, default)


@dataclass(frozen=True)
class Forward:
    """An inference graph with one image input [batch, 3, H, W] and one output, the logits [batch, classes].

    ``parameters`` are the initializers that are the model's own weights, not its buffers or the exporter's constants;
    ``per_image`` the tensors of floats whose first axis is the batch.
    """

    nodes: tuple[Node, ...]
    initializers: dict[str, np.ndarray]
    shapes: dict[str, Shape]
    input: str
    logits: str
    parameters: frozenset[str] = frozenset()
    per_image: frozenset[str] = frozenset()

    def shape(self, name: str) -> Shape:
        """Shape of a tensor; () when shape inference could not tell."""
        return self.shapes.get(name, ())


def live_nodes(nodes: Sequence[Node], output: str, known: str = "") -> list[Node]:
    """The nodes that the output depends on, in order; not those that make only what is ``known``."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.outputs) - {known}:
            needed |= set(node.inputs)
            kept.append(node)
    return kept[::-1]
