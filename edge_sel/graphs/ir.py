"""A forward graph as the compiler sees it: plain nodes, initializer arrays, static shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from edge_sel.errors import GraphError

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


def read_forward(model: onnx.ModelProto, parameters: Collection[str] | None = None) -> Forward:
    """Parse a forward graph, without what training has no use for.

    Constant, Dropout, CastLike and Split nodes, zero biases and computed shapes that are known are simplified away.

    Args:
        model: the inference graph.
        parameters: which initializers are weights; by default those of floats with a module path (a dot) in the name.

    Raises:
        GraphError: not exactly one image input and one output, or operators outside the standard domain.
    """
    model = shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    initializers = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    inputs = [i.name for i in graph.input if i.name not in initializers]
    if len(inputs) != 1 or len(graph.output) != 1 or graph.output[0].name != LOGITS:
        raise GraphError("a forward graph needs one image input and one output named logits", where=graph.name)
    values = [*graph.value_info, *graph.input, *graph.output]
    shapes = {v.name: _shape(v) for v in values if v.type.tensor_type.HasField("shape")}
    types = {v.name: v.type.tensor_type.elem_type for v in values} | {i.name: i.data_type for i in graph.initializer}
    if parameters is None:
        parameters = {name for name, value in initializers.items() if "." in name and value.dtype.kind == "f"}
    nodes = _parse(graph, initializers, shapes, types, parameters)
    shapes.update({name: value.shape for name, value in initializers.items()})
    nodes = [_without_zero_bias(node, initializers) for node in nodes]
    nodes = live_nodes([_with_constant_shape(node, shapes, initializers) for node in nodes], graph.output[0].name)
    used = {name for node in nodes for name in node.inputs}
    initializers = {name: value for name, value in initializers.items() if name in used}
    kept = frozenset(parameters) & initializers.keys()
    per_image = frozenset(v.name for v in values if types[v.name] == onnx.TensorProto.FLOAT and _batched(v))
    return Forward(tuple(nodes), initializers, shapes, inputs[0], graph.output[0].name, kept, per_image)


def _parse(
    graph: onnx.GraphProto,
    initializers: dict[str, np.ndarray],
    shapes: Mapping[str, Shape],
    types: Mapping[str, int],
    parameters: Collection[str],
) -> list[Node]:
    """The graph's nodes; what is constant joins the initializers instead."""
    nodes: list[Node] = []
    for proto in graph.node:
        if proto.domain not in ("", "ai.onnx"):
            raise GraphError(f"operator {proto.op_type} is not a standard ONNX operator", where=proto.name)
        attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        if proto.op_type == "Constant":
            initializers[proto.output[0]] = _constant(attributes)
            continue
        node = Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, proto.name)
        if node.op == "Dropout" or (node.op == "CastLike" and types.get(node.inputs[0]) == types.get(node.inputs[1])):
            node = Node("Identity", node.inputs[:1], node.outputs[:1], {}, node.name)
        if node.op == "Identity" and node.inputs[0] in initializers.keys() - parameters:
            initializers[node.outputs[0]] = initializers[node.inputs[0]]
        elif node.op == "Split":
            nodes.extend(_slices(node, shapes, initializers))
        else:
            nodes.append(node)
    return nodes


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _batched(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and dims[0].dim_param == BATCH


def _constant(attributes: dict[str, Any]) -> np.ndarray:
    (key, value), *_ = attributes.items()
    if key == "value":
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value, np.int64 if key.startswith("value_int") else np.float32)


def _slices(node: Node, shapes: Mapping[str, Shape], initializers: dict[str, np.ndarray]) -> list[Node]:
    """A Split as one Slice per output, as far as the sizes are known: every rule has one output."""
    axis = node.attribute("axis", 0)
    sizes = [shapes[name][axis] if name in shapes else None for name in node.outputs]
    if None in sizes:
        return [node]
    ends = np.cumsum([size or 0 for size in sizes])
    slices = []
    for name, start, end in zip(node.outputs, [0, *ends[:-1]], ends, strict=True):
        bounds = {f"{name}::start": start, f"{name}::end": end, f"{name}::axis": axis}
        initializers.update({key: np.array([value], np.int64) for key, value in bounds.items()})
        slices.append(Node("Slice", (node.inputs[0], *bounds), (name,), {}, f"{node.name}::{name}"))
    return slices


def _with_constant_shape(node: Node, shapes: Mapping[str, Shape], initializers: dict[str, np.ndarray]) -> Node:
    """A Reshape whose target the exporter computes from the batch size, with the target itself."""
    shape = shapes.get(node.outputs[0], ())
    if node.op != "Reshape" or node.inputs[1] in initializers or not shape or shape.count(None) > 1 or 0 in shape:
        return node
    target = f"{node.outputs[0]}::shape"
    initializers[target] = np.array([-1 if size is None else size for size in shape], np.int64)
    return Node(node.op, (node.inputs[0], target), node.outputs, node.attributes, node.name)


def live_nodes(nodes: Sequence[Node], output: str, known: str = "") -> list[Node]:
    """The nodes that the output depends on, in order; not those that make only what is ``known``."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.outputs) - {known}:
            needed |= set(node.inputs)
            kept.append(node)
    return kept[::-1]


def _without_zero_bias(node: Node, initializers: dict[str, np.ndarray]) -> Node:
    """Drop the all-zero bias that the torch exporter gives to a bias-free convolution."""
    if node.op == "Conv" and len(node.inputs) == 3:
        bias = node.inputs[2]
        if "." not in bias and bias in initializers and not initializers[bias].any():
            return Node(node.op, node.inputs[:2], node.outputs, node.attributes, node.name)
    return node
