"""The frozen backbone of a plan: where its forward pass is cut in two, both halves, and the backbone on 8-bit integers.

What comes before the cut gives the same features for an image however long the plan trains, so once is enough. In the
quantized variant activations are unsigned and weights signed, with a scale per output channel. Only what does not
depend on weights stands in its graph. The device folds batch normalisation into the integers itself: it may have
re-estimated the statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import nan, prod
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge_sel.arrays import Arrays, Range
from edge_sel.errors import GraphError
from edge_sel.graphs.builder import Builder
from edge_sel.graphs.cost import node_flops
from edge_sel.graphs.ir import BATCH, Forward, Node, live_nodes, readers_of
from edge_sel.graphs.plans import Plan, head_names, running_statistics
from edge_sel.pack.manifest import IMAGE_GRID, Int8Conv, Int8Info
from edge_sel.quantize import grid_of

MIN_SHARE = 0.1
"""Least share of the forward pass that a backbone must save: a stem is cheaper to compute again than to keep."""

NEARLY_ALL = 0.8
"""A cut with smaller features is preferred if its backbone still saves this share of what the latest one's would."""


@dataclass(frozen=True)
class Cut:
    """A tensor through which everything passes that the image contributes to the logits.

    Attributes:
        tensor: its name in the forward graph.
        shape: of one image's features, without the batch axis.
        constants: initializers that the features depend on: weights, statistics and the exporter's own.
    """

    tensor: str
    shape: tuple[int, ...]
    constants: tuple[str, ...]


def find_cut(forward: Forward, plan: Plan) -> Cut | None:
    """Where this plan is cut; None where too little comes before the first thing that changes, or nothing trains.

    Nothing before a cut depends on what the plan changes, no weight serves on both sides, and the logits depend on the
    image through it alone: in a residual network only what follows a join will do. Of those the latest, or one that
    is hardly earlier and smaller; where only the head is trained, what the head takes.
    """
    changing = {*plan.trainable, *plan.buffers}
    weights = {*forward.parameters, *running_statistics(forward)}
    found = []
    for node in forward.nodes[:-1] if plan.trainable else ():
        tensor = node.outputs[0]
        shape = forward.shape(tensor)[1:]
        if tensor not in forward.per_image or not shape or None in shape:
            continue
        before = live_nodes(forward.nodes, tensor)
        ours = _read(before)
        theirs = _read(live_nodes(forward.nodes, forward.logits, known=tensor))
        if forward.input not in ours or forward.input in theirs or ours.keys() & changing:
            continue
        constants = tuple(name for name in ours if name in forward.initializers)
        if not any(name in theirs and name in weights for name in constants):
            flops = sum(node_flops(node, forward.shapes) for node in before)
            found.append((Cut(tensor, tuple(size or 0 for size in shape), constants), flops))
    least = MIN_SHARE * sum(node_flops(node, forward.shapes) for node in forward.nodes)
    only_head = set(plan.trainable) <= set(head_names(forward))
    share = 1.0 if only_head else NEARLY_ALL  # the closed form needs what the head itself takes
    least = max(least, share * max((flops for _, flops in found), default=0))
    late = [cut for cut, flops in reversed(found) if flops >= least]
    if only_head:  # a vector rather than the same as a map of one pixel
        return next((cut for cut in late if len(cut.shape) == 1), late[0] if late else None)
    return min(late, key=lambda cut: prod(cut.shape), default=None)


def compile_backbone(forward: Forward, cut: Cut) -> onnx.ModelProto:
    """Image in, features out: ``x`` [batch, 3, H, W] to ``features`` [batch, …]; all weights are constants."""
    b = Builder()
    for node in live_nodes(forward.nodes, cut.tensor):
        b.copy(node)
    return _backbone_model(b, forward, cut, cut.tensor, forward.initializers, "backbone")


def _backbone_model(
    b: Builder, forward: Forward, cut: Cut, tensor: str, initializers: Arrays, name: str
) -> onnx.ModelProto:
    """The finished model; ``tensor`` holds the features."""
    b.op("Identity", tensor, name="features")
    image = [BATCH, *forward.shape(forward.input)[1:]]
    inputs = [helper.make_tensor_value_info(forward.input, TensorProto.FLOAT, image)]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [BATCH, *cut.shape])]
    return b.model(inputs, outputs, initializers, name)


def tail(forward: Forward, cut: Cut | None) -> Forward:
    """The forward graph from the cut on, its image input replaced by the features; the whole of it without a cut."""
    if cut is None:
        return forward
    nodes = tuple(
        replace(node, inputs=tuple(forward.input if name == cut.tensor else name for name in node.inputs))
        for node in live_nodes(forward.nodes, forward.logits, known=cut.tensor)
    )
    used = _read(nodes)
    initializers = {name: value for name, value in forward.initializers.items() if name in used}
    shapes = {**forward.shapes, forward.input: forward.shape(cut.tensor)}
    parameters = forward.parameters & initializers.keys()
    return replace(forward, nodes=nodes, initializers=initializers, shapes=shapes, parameters=parameters)


def _read(nodes: Iterable[Node]) -> dict[str, None]:
    """Names that these nodes read, in order."""
    return {name: None for node in nodes for name in node.inputs if name}


class Grid(NamedTuple):
    """Names of the scale and of the zero point of a tensor's integers, and the scale, if the server knows it."""

    scale_name: str
    zero_name: str
    scale: float | None


CLAMPS = ("Relu", "Clip")
SUPPORTED = ("Conv", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", *CLAMPS)
"""What the last convolution of a backbone with a quantized variant may depend on, besides normalisation behind one."""


@dataclass(frozen=True)
class Step:
    """An operator with the normalisation and the clamp behind it, which cost nothing there.

    Attributes:
        node: the operator.
        norm: the batch normalisation that a convolution's weights take in.
        clamp: the activation.
        output: of all of them.
        integers: whether the output is to be quantized.
    """

    node: Node
    norm: Node | None
    clamp: Node | None
    output: str
    integers: bool


def quantized_steps(forward: Forward, cut: Cut) -> tuple[Step, ...]:
    """The backbone as the quantized variant computes it; what no convolution follows stays in floating point.

    Raises:
        GraphError: an operator has no quantized form; names it.
    """
    nodes = live_nodes(forward.nodes, cut.tensor)
    readers = readers_of(nodes)
    convolutions = [node for node in nodes if node.op == "Conv"]
    if not convolutions:
        raise GraphError("it has no convolution")
    before = {
        name for conv in convolutions for node in (conv, *live_nodes(nodes, conv.inputs[0])) for name in node.inputs
    }
    steps, absorbed = [], set()
    for node in nodes:
        if node.outputs[0] in absorbed:
            continue
        if node.op == "Conv" or node.outputs[0] in before:
            _require_supported(forward, node)
        output, norm, clamp = node.outputs[0], None, None
        if node.op == "Conv" and (norm := _only_reader(readers, output, ("BatchNormalization",))):
            _require_weights(forward, norm, norm.inputs[1:])
            output = norm.outputs[0]
        if node.op in ("Conv", "Add") and (clamp := _only_reader(readers, output, CLAMPS)):
            output = clamp.outputs[0]
        absorbed |= {step.outputs[0] for step in (norm, clamp) if step}
        steps.append(Step(node, norm, clamp, output, output in before or node.op == "Conv"))
    return tuple(steps)


def compile_quantized(
    forward: Forward, cut: Cut, steps: tuple[Step, ...], ranges: Mapping[str, Range]
) -> tuple[onnx.ModelProto, Int8Info]:
    """Image in, features out, as ``compile_backbone``; and what the device is to supply, with no file and no error yet.

    Args:
        forward: the whole graph.
        cut: where it ends.
        steps: of ``quantized_steps``.
        ranges: least and greatest value of every step's output that is quantized.
    """
    emitter = _Emitter(forward, ranges)
    for step in steps:
        if step.node.op == "Conv":
            emitter.convolution(step)
        else:
            emitter.operator(step)
    model = emitter.model(cut)
    stored = {*forward.parameters, *running_statistics(forward)}
    constants = tuple(tensor.name for tensor in model.graph.initializer if tensor.name in stored)
    return model, Int8Info("", nan, tuple(emitter.convolutions), constants)


class _Emitter:
    """Appends one step after the other; knows of each tensor of the forward graph where it stands, and as what."""

    def __init__(self, forward: Forward, ranges: Mapping[str, Range]) -> None:
        self.convolutions: list[Int8Conv] = []
        self._forward, self._ranges, self._b = forward, ranges, Builder()
        self._floats: dict[str, str] = {}
        self._integers: dict[str, str] = {}
        self._grids: dict[str, Grid] = {}
        scale, zero = IMAGE_GRID
        self._supplied: Arrays = {scale: np.zeros((), np.float32), zero: np.zeros((), np.uint8)}
        self._quantize(forward.input, forward.input, Grid(*IMAGE_GRID, None))

    def convolution(self, step: Step) -> None:
        """One operator on integers, which takes normalisation and clamp in."""
        node, norm, output = step.node, step.norm, step.output
        source, weight, *bias = node.inputs
        conv = Int8Conv(
            name=output,
            weight=weight,
            bias=bias[0] if bias else "",
            norm=norm.inputs[1:] if norm else (),
            epsilon=float(norm.attribute("epsilon", 1e-5)) if norm else 0.0,
            input_scale=self._grids[source].scale,
        )
        self.convolutions.append(conv)
        shape = self._forward.initializers[weight].shape
        kinds = (np.zeros(shape, np.int8), np.zeros(shape[0], np.float32), np.zeros(shape[0], np.int32))
        self._supplied |= zip(conv.supplied, kinds, strict=True)
        whole, scale, steps = conv.supplied
        on = self._grids[output] = self._grid(output)
        zero = self._b.constant(0, np.int8)
        operands = (self._integers[source], *self._grids[source][:2], whole, scale, zero, *on[:2], steps)
        self._integers[output] = self._b.op("QLinearConv", *operands, **node.attributes)

    def operator(self, step: Step) -> None:
        """Any other operator, on floats."""
        node, clamp, output = step.node, step.clamp, step.output
        value = self._b.op(node.op, *(self._float(name) for name in node.inputs), **node.attributes)
        if step.integers:  # a clamp is what the limits of the integers are
            same = node.op in ("MaxPool", "Identity") and node.inputs[0] in self._grids
            self._quantize(output, value, self._grids[node.inputs[0]] if same else self._grid(output))
        elif clamp:
            self._floats[output] = self._b.op(clamp.op, value, *clamp.inputs[1:], **clamp.attributes)
        else:
            self._floats[output] = value

    def model(self, cut: Cut) -> onnx.ModelProto:
        """All that was appended, ``features`` at its end; what the device supplies is declared as external data."""
        given = {**self._forward.initializers, **self._supplied}
        model = _backbone_model(self._b, self._forward, cut, self._float(cut.tensor), given, "backbone-int8")
        for tensor in model.graph.initializer:
            if tensor.name in self._supplied:
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                length = str(self._supplied[tensor.name].nbytes)
                for key, value in (("location", "int8"), ("offset", "0"), ("length", length)):
                    tensor.external_data.add(key=key, value=value)
        return model

    def _grid(self, output: str) -> Grid:
        scale, zero = grid_of(self._ranges[output])
        return Grid(self._b.floats(scale), self._b.constant(zero, np.uint8), scale)

    def _quantize(self, name: str, value: str, on: Grid) -> None:
        self._grids[name], self._integers[name] = on, self._b.op("QuantizeLinear", value, *on[:2])

    def _float(self, name: str) -> str:
        if name not in self._integers:
            return self._floats.get(name, name)
        return self._b.op("DequantizeLinear", self._integers[name], *self._grids[name][:2])


def _require_supported(forward: Forward, node: Node) -> None:
    given = node.inputs[:1] if node.op in ("Conv", "Clip") else node.inputs
    if node.op not in SUPPORTED or any(name in forward.initializers for name in given):
        raise GraphError(f"operator {node.op} is not supported", where=node.name)
    if node.op == "Conv":
        if node.attribute("auto_pad", b"NOTSET") != b"NOTSET" or len(forward.shape(node.inputs[1])) != 4:
            raise GraphError("a convolution of another kind", where=node.name)
        _require_weights(forward, node, [name for name in node.inputs[1:] if name])


def _require_weights(forward: Forward, node: Node, names: list[str] | tuple[str, ...]) -> None:
    """The device has what stands in the pack's weights."""
    if not {*names} <= {*forward.parameters, *running_statistics(forward)}:
        raise GraphError(f"operator {node.op} with computed weights is not supported", where=node.name)


def _only_reader(readers: Mapping[str, list[Node]], name: str, ops: tuple[str, ...]) -> Node | None:
    found = readers.get(name, [])
    return found[0] if len(found) == 1 and found[0].op in ops else None
