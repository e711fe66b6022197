"""Let the head read earlier layers too: means and deviations over the map of the outputs of the last blocks.

A linear layer ``deep_head`` of these is added to the logits. Its weights are zero, so the classifier computes what it
did; a head in closed form, or any training, may then use them. They cost no further forward pass.

Source: Evci et al. 2022 (Head2Toe: a linear head on features of all layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.backbone import find_cut
from edge_sel.graphs.head_form import Extension, head_scale, layers_obstacle
from edge_sel.graphs.ir import Forward, Node, live_nodes
from edge_sel.graphs.plans import head_layers, head_names, make_plan
from edge_sel.pack.manifest import DEEP_HEAD, Tap

MOST_TAPS = 4
"""Further ones, nearer to the image, gave nothing more on real photographs."""
MOST_FEATURES = 8192
"""Of all taps together: the sums of the server's features are as long."""
EPSILON = 1e-5
"""In the variance, as batch normalisation has it: the square root of nothing has no derivative."""

_JOINS = ("Add", "Concat", "Sum", "ScatterND")
_KEEPING = (
    "Add", "Relu", "Clip", "Identity", "HardSwish", "LeakyRelu", "Elu", "BatchNormalization", "LayerNormalization",
)  # fmt: skip
"""Operators by which a block's output goes on as one tensor; the next block takes what they make."""


def find_taps(forward: Forward) -> list[Tap]:
    """The outputs of the last blocks by the names of their tensors, the last one first; empty where there are none.

    Where the graph narrows to one tensor, everything that comes later depends on the image through it alone. Of these
    a block's output is what a join makes, or a bottleneck: a convolution with fewer channels than those before and
    behind it. What the head's own pooling takes comes first, whatever made it.
    """
    narrow = _narrow(forward)
    made = {name: node for node in forward.nodes for name in node.outputs}
    place = {name: number for number, name in enumerate(narrow)}
    pooled, bottlenecks = _pooled_by_head(forward, made), _bottlenecks(forward)
    found = {} if pooled is None else {pooled: None}
    for name in reversed(narrow):
        if made[name].op not in _JOINS and name not in bottlenecks:
            continue
        while place[name] + 1 < len(narrow):
            following = made[narrow[place[name] + 1]]
            others = forward.per_image.intersection(following.inputs) - {name}
            if following.op not in _KEEPING or name not in following.inputs or others:
                break
            name = narrow[place[name] + 1]
        found.setdefault(name)
    chosen: list[str] = []
    first = _first_allowed(forward, place)
    for name in found:
        inside = any(made[other].op == "Concat" and name in made[other].inputs for other in chosen)
        averaged = any((forward.shape(name)[axis] or 0) > 1 for axis in _axes(forward, name))
        if inside or place[name] < first or not averaged:
            continue
        if len(chosen) == MOST_TAPS or sum(2 * _width(forward, n) for n in (*chosen, name)) > MOST_FEATURES:
            break
        chosen.append(name)
    return [Tap(name, _axes(forward, name), _width(forward, name), mean=name != pooled) for name in chosen]


def with_deep_head(forward: Forward, taps: Sequence[Tap]) -> Forward:
    """The same classifier, whose logits come from the taps too, with weights of zero.

    Args:
        forward: with vector features, see ``head_form.with_vector_features``.
        taps: maps or tokens, by the names of their tensors.

    Returns:
        The graph; as it was where the head is not linear in a vector, or is a deep one already, as in our own files.
    """
    if any(name.startswith(DEEP_HEAD) for name in forward.shapes):
        return forward
    try:
        if not taps or layers_obstacle(forward):
            return forward
        vector, scale = _head_input(forward), head_scale(forward)
    except GraphError:
        return forward
    return forward if vector is None else _DeepHead(forward, vector).added(taps, scale)


def _head_input(forward: Forward) -> str | None:
    """The one vector that all layers of the head take, or None."""
    names = head_names(forward)
    width = sum(forward.initializers[name].shape[1] for name in names[::2])
    narrow = [name for name in _narrow(forward) if forward.shape(name)[1:] == (width,)]
    return narrow[-1] if narrow else None


def _narrow(forward: Forward) -> list[str]:
    """Tensors through which everything passes that the image contributes to the logits, in order."""
    nodes = live_nodes(forward.nodes, forward.logits)
    last = {name: number for number, node in enumerate(nodes) for name in node.inputs}
    depends, alive, found = {forward.input}, {forward.input}, []
    for number, node in enumerate(nodes):
        if depends.intersection(node.inputs):
            depends |= {*node.outputs}
            alive |= {name for name in node.outputs if name in last and name in forward.per_image}
        alive = {name for name in alive if last[name] > number}
        if len(alive) == 1 and node.outputs[0] in alive:
            found.append(node.outputs[0])
    return found


def _first_allowed(forward: Forward, place: dict[str, int]) -> int:
    """Number of the first tensor that may be a tap: the cut of plan ``last``.

    A tap before the cut would leave that plan without a frozen backbone.
    """
    try:
        cut = find_cut(forward, make_plan(forward, "last"))
    except GraphError:
        return 0
    return 0 if cut is None or len(cut.shape) == 1 else place.get(cut.tensor, 0)  # else it is the head's own


def _bottlenecks(forward: Forward) -> set[str]:
    """What convolutions make that have fewer channels than the convolutions before and behind them."""
    convolutions = [node.outputs[0] for node in live_nodes(forward.nodes, forward.logits) if node.op == "Conv"]
    widths = [_width(forward, name) for name in convolutions]
    return {convolutions[i] for i in range(1, len(widths) - 1) if widths[i - 1] > widths[i] < widths[i + 1]}


def _pooled_by_head(forward: Forward, made: dict[str, Node]) -> str | None:
    """The map whose mean the head takes."""
    name = head_layers(forward)[0].inputs[0]
    while name in made and made[name].op in ("Flatten", "Reshape", "Squeeze", "Slice", "Dropout", "Identity"):
        name = made[name].inputs[0]
    node = made.get(name)
    return node.inputs[0] if node is not None and node.op in ("GlobalAveragePool", "ReduceMean") else None


def _axes(forward: Forward, name: str) -> tuple[int, ...]:
    """Those of the pixels, or of the tokens; none where it is a vector or of unknown size."""
    shape = forward.shape(name)
    if name not in forward.per_image or None in shape[1:]:
        return ()
    if len(shape) == 4:  # transformers with windows keep their channels last
        return (1, 2) if shape[1] == shape[2] != shape[3] else (2, 3)
    return (1,) if len(shape) == 3 else ()


def tap_scale(tap: Tap) -> float:
    """Factor of a layer's features: one over the root of their number.

    Unscaled ones of EfficientNet-Lite0 are fifty times as long, squared, as those of its own head. A step size that
    suits the network as it was published then makes the head diverge.
    """
    return float(np.float32(tap.width**-0.5))


def _width(forward: Forward, name: str) -> int:
    """How many channels."""
    shape, axes = forward.shape(name), _axes(forward, name)
    return int(next(shape[axis] for axis in range(1, len(shape)) if axis not in axes) or 0) if axes else 0


class _DeepHead(Extension):
    """The nodes that a deep head adds to a graph."""

    def __init__(self, forward: Forward, vector: str) -> None:
        super().__init__(forward, DEEP_HEAD)
        self._vector = vector

    def added(self, taps: Sequence[Tap], scale: float) -> Forward:
        """The whole graph; the new layer has the factor of the others."""
        forward = self.forward
        own, width = int(forward.shape(self._vector)[1] or 0), sum(tap.features for tap in taps)
        parts = [part for tap in taps for part in self._pooled(tap)]
        joined = self.add("Concat", (self._vector, *parts), (None, own + width), "features", axis=1)
        shallow, deep = self.part(joined, 0, own), self.part(joined, own, own + width)
        pooling, self.nodes = self.nodes, []
        weights = self._layer(deep, width, scale)
        before = f"{DEEP_HEAD}::shallow"
        self.shapes[before] = forward.shape(forward.logits)
        self.per_image.add(before)
        join = Node("Add", (before, self.nodes[-1].outputs[0]), (forward.logits,), {}, f"{DEEP_HEAD}::sum")
        needed = (self._vector, *(tap.name for tap in taps))
        first = {id(node) for name in needed for node in live_nodes(forward.nodes, name)}
        body = [node for node in forward.nodes if id(node) in first]
        taken, given = {self._vector: shallow}, {forward.logits: before}  # by the head: its part of the features
        head = [
            replace(
                node,
                inputs=tuple(taken.get(name, name) for name in node.inputs),
                outputs=tuple(given.get(name, name) for name in node.outputs),
            )
            for node in forward.nodes
            if id(node) not in first
        ]
        return self.graph((*body, *pooling, *head, *self.nodes, join), weights)

    def _layer(self, features: str, width: int, scale: float) -> tuple[str, str]:
        """A linear layer of zeros; the names of its weight and its bias."""
        classes = self.forward.shape(self.forward.logits)[1]
        count = self.forward.initializers[head_names(self.forward)[0]].shape[0]
        weight, bias = f"{DEEP_HEAD}.weight", f"{DEEP_HEAD}.bias"
        for name, value in ((weight, np.zeros((count, width), np.float32)), (bias, np.zeros(count, np.float32))):
            self.initializers[name], self.shapes[name] = value, value.shape
        logits = self.add("Gemm", (features, weight, bias), (None, classes), "logits", transB=1)
        if scale != 1.0:
            factor = self.constant("scale", np.array([scale], np.float32))
            self.add("Mul", (logits, factor), (None, classes), "scaled")
        return weight, bias

    def _pooled(self, tap: Tap) -> list[str]:
        """Means of a map or of tokens, where they are features, and standard deviations; see ``tap_scale``."""
        name, vector, shape = tap.name, (None, tap.width), self.forward.shape(tap.name)
        kept = tuple(1 if axis in tap.axes else size for axis, size in enumerate(shape))
        where, small = self.ints(*tap.axes), self.constant("epsilon", np.array([EPSILON], np.float32))
        mean = self.add("ReduceMean", (name, where), kept, f"{name}::mean", keepdims=1)
        centred = self.add("Sub", (name, mean), shape, f"{name}::centred")
        square = self.add("Mul", (centred, centred), shape, f"{name}::square")
        variance = self.add("ReduceMean", (square, where), vector, f"{name}::variance", keepdims=0)
        positive = self.add("Add", (variance, small), vector, f"{name}::positive")
        deviation = self.add("Sqrt", (positive,), vector, f"{name}::deviation")
        parts = [deviation]
        if tap.mean:
            parts.insert(0, self.add("Reshape", (mean, self.ints(-1, tap.width)), vector, f"{name}::vector"))
        factor = self.constant(f"scale{tap.width}", np.array([[tap_scale(tap)]], np.float32))
        return [self.add("Mul", (part, factor), vector, f"{name}::scaled") for part in parts]
