"""A forward graph as the compiler sees it: plain nodes, initializer arrays, static shapes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int | None, ...]
"""Static dimensions; ``None`` where the size is only known at run time (batch, classes)."""

Pair = tuple[int, int]
"""(height, width)"""

BATCH = "batch"
CLASSES = "classes"
LOGITS = "logits"
_DEPTHWISE = "depthwise_gradient:"
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


class Absent(np.ndarray):
    """An array whose values nobody asks for, such as the weights in a dry run: it takes no memory."""

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Absent:
        """An absent array of float32."""
        return np.broadcast_to(np.float32(0), shape).view(cls)


@dataclass(frozen=True)
class Forward:
    """An inference graph with one image input [batch, 3, H, W] and one output, the logits [batch, classes].

    ``parameters`` are the initializers that are the model's own weights, not its buffers or the exporter's constants;
    ``per_image`` the tensors of floats whose first axis is the batch. Of a network of torch, ``modules`` tells which
    tensor is the output of which module.
    """

    nodes: tuple[Node, ...]
    initializers: dict[str, np.ndarray]
    shapes: dict[str, Shape]
    input: str
    logits: str
    parameters: frozenset[str] = frozenset()
    per_image: frozenset[str] = frozenset()
    modules: Mapping[str, str] | None = None

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


def readers_of(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """The nodes that read each tensor; a node once for each input."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return readers


class DepthwiseGradient(NamedTuple):
    """The gradient by the weight of a depthwise convolution.

    The name of the node that makes it says what it is, for an engine that knows a faster form.

    Attributes:
        x: name of its input [N, C, H, W].
        dy: name of the gradient by its output [N, C, H', W'].
        kernel: size.
        strides: of the convolution.
        dilations: likewise.
        pads: at the beginning of each axis.
    """

    x: str
    dy: str
    kernel: Pair
    strides: Pair
    dilations: Pair
    pads: Pair

    def name(self) -> str:
        """For the node that makes it."""
        return _DEPTHWISE + json.dumps(self)

    def end_pads(self, size: tuple[int, ...], out: tuple[int, ...]) -> Pair:
        """Padding at the end of each axis, so that a convolution of x with dy has the size of the kernel."""
        rows, columns = (
            (self.kernel[i] - 1) * self.dilations[i] + (out[i] - 1) * self.strides[i] + 1 - size[i] - self.pads[i]
            for i in (0, 1)
        )
        return rows, columns


def read_depthwise_gradient(name: str) -> DepthwiseGradient | None:
    """What a node's name says; None if it says nothing of this kind."""
    if not name.startswith(_DEPTHWISE):
        return None
    try:
        x, dy, *pairs = json.loads(name[len(_DEPTHWISE) :])
        kernel, strides, dilations, pads = ((int(a), int(b)) for a, b in pairs)
    except (ValueError, TypeError):
        return None
    return DepthwiseGradient(str(x), str(dy), kernel, strides, dilations, pads)
