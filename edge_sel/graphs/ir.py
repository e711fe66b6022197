"""A forward graph as the compiler sees it: plain nodes, initializer arrays, static shapes."""

from __future__ import annotations

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
    """An inference graph with one image input [batch, 3, H, W] and one output, the logits [batch, classes]."""

    nodes: tuple[Node, ...]
    initializers: dict[str, np.ndarray]
    shapes: dict[str, Shape]
    input: str
    logits: str

    def shape(self, name: str) -> Shape:
        """Shape of a tensor; () when shape inference could not tell."""
        return self.shapes.get(name, ())


def read_forward(model: onnx.ModelProto) -> Forward:
    """Parse a forward graph; Constant and Dropout nodes and dead zero biases are simplified away.

    Raises:
        GraphError: not exactly one image input and one output, or operators outside the standard domain.
    """
    model = shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    initializers = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    inputs = [i.name for i in graph.input if i.name not in initializers]
    if len(inputs) != 1 or len(graph.output) != 1 or graph.output[0].name != LOGITS:
        raise GraphError("a forward graph needs one image input and one output named logits", where=graph.name)
    shapes = {v.name: _shape(v) for v in [*graph.value_info, *graph.input, *graph.output]}
    nodes = []
    for proto in graph.node:
        if proto.domain not in ("", "ai.onnx"):
            raise GraphError(f"operator {proto.op_type} is not a standard ONNX operator", where=proto.name)
        attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        if proto.op_type == "Constant":
            initializers[proto.output[0]] = _constant(attributes)
        elif proto.op_type == "Dropout":
            nodes.append(Node("Identity", (proto.input[0],), (proto.output[0],), {}, proto.name))
        else:
            nodes.append(Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, proto.name))
    shapes.update({name: value.shape for name, value in initializers.items()})
    nodes = [_without_zero_bias(node, initializers) for node in nodes]
    used = {name for node in nodes for name in node.inputs}
    initializers = {name: value for name, value in initializers.items() if name in used}
    return Forward(tuple(nodes), initializers, shapes, inputs[0], graph.output[0].name)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _constant(attributes: dict[str, Any]) -> np.ndarray:
    (key, value), *_ = attributes.items()
    if key == "value":
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value, np.int64 if key.startswith("value_int") else np.float32)


def _without_zero_bias(node: Node, initializers: dict[str, np.ndarray]) -> Node:
    """Drop the all-zero bias that the torch exporter gives to a bias-free convolution."""
    if node.op == "Conv" and len(node.inputs) == 3:
        bias = node.inputs[2]
        if "." not in bias and bias in initializers and not initializers[bias].any():
            return Node(node.op, node.inputs[:2], node.outputs, node.attributes, node.name)
    return node
