"""The quantized variant of a frozen prefix: unsigned activations, signed weights with a scale per output channel.

Only what does not depend on weights stands in the graph. The device folds batch normalisation into the integers itself:
it may have re-estimated the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge_sel.arrays import Arrays, Range
from edge_sel.errors import GraphError
from edge_sel.graphs.builder import Builder
from edge_sel.graphs.ir import BATCH, Forward, Node, live_nodes
from edge_sel.graphs.plans import running_statistics
from edge_sel.graphs.prefix import Cut
from edge_sel.pack.manifest import IMAGE_GRID, Int8Conv, Int8Info
from edge_sel.quantize import grid_of


class Grid(NamedTuple):
    """Names of the scale and of the zero point of a tensor's integers, and the scale, if the server knows it."""

    scale_name: str
    zero_name: str
    scale: float | None


CLAMPS = ("Relu", "Clip")
SUPPORTED = ("Conv", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", *CLAMPS)
"""What the last convolution of a prefix with a quantized variant may depend on, besides normalisation behind one."""


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
    """The prefix as the quantized variant computes it; what no convolution follows stays in floating point.

    Raises:
        GraphError: an operator has no quantized form; names it.
    """
    nodes = live_nodes(forward.nodes, cut.tensor)
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
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
    """Image in, features out, as ``compile_prefix``; and what the device is to supply, with no file and no error yet.

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
    return model, Int8Info("", math.nan, tuple(emitter.convolutions), constants)


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
        source, output = step.node.inputs[0], step.output
        conv, values = _convolution(self._forward, step, self._grids[source].scale)
        self.convolutions.append(conv)
        self._supplied |= values
        weight, scale, bias = values
        on = self._grids[output] = self._grid(output)
        zero = self._b.constant(0, np.int8)
        operands = (self._integers[source], *self._grids[source][:2], weight, scale, zero, *on[:2], bias)
        self._integers[output] = self._b.op("QLinearConv", *operands, **step.node.attributes)

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
        """All that was appended, ``features`` at its end, without what the device supplies."""
        self._b.op("Identity", self._float(cut.tensor), name="features")
        image = [BATCH, *self._forward.shape(self._forward.input)[1:]]
        inputs = [helper.make_tensor_value_info(self._forward.input, TensorProto.FLOAT, image)]
        outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [BATCH, *cut.shape])]
        model = self._b.model(inputs, outputs, {**self._forward.initializers, **self._supplied}, "prefix-int8")
        _leave_out(model, self._supplied)
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


def _convolution(forward: Forward, step: Step, input_scale: float | None) -> tuple[Int8Conv, Arrays]:
    """What the manifest says of a convolution, and weight, scale and bias as they will be supplied."""
    node, norm = step.node, step.norm
    conv = Int8Conv(
        name=step.output,
        weight=node.inputs[1],
        bias=node.inputs[2] if len(node.inputs) > 2 else "",
        norm=norm.inputs[1:] if norm else (),
        epsilon=float(norm.attribute("epsilon", 1e-5)) if norm else 0.0,
        input_scale=input_scale,
    )
    shape = forward.initializers[conv.weight].shape
    kinds = (np.zeros(shape, np.int8), np.zeros(shape[0], np.float32), np.zeros(shape[0], np.int32))
    return conv, dict(zip(conv.supplied, kinds, strict=True))


def _leave_out(model: onnx.ModelProto, names: Mapping[str, np.ndarray]) -> None:
    """Declare these initializers as standing elsewhere."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "int8"), ("offset", "0"), ("length", str(names[tensor.name].nbytes))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
