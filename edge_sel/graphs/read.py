"""Read an ONNX inference graph as plain nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import LOGITS, Forward, Node, Shape, live_nodes
from edge_sel.graphs.shapes import constant_value, infer_any_batch, shape_of
from edge_sel.graphs.simplify import simplify, split_into_slices


def read_forward(model: onnx.ModelProto, parameters: Collection[str] | None = None) -> Forward:
    """Parse a forward graph, without what training has no use for.

    Constant, Dropout, CastLike and Split nodes, zero biases and computed shapes that are known are simplified away.

    Args:
        model: the inference graph.
        parameters: which initializers are weights; by default those of floats with a module path (a dot) in the name.

    Raises:
        GraphError: not exactly one image input and one output, or operators outside the standard domain.
    """
    graph = model.graph
    initializers = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    inputs = [i.name for i in graph.input if i.name not in initializers]
    if len(inputs) != 1 or len(graph.output) != 1 or graph.output[0].name != LOGITS:
        raise GraphError("a forward graph needs one image input and one output named logits", where=graph.name)
    known, batched = infer_any_batch(model)
    told = {v.name: shape_of(v) for v in graph.value_info if v.type.tensor_type.HasField("shape")}
    shapes = told | known.shapes
    initializers |= known.values
    if parameters is None:
        parameters = {name for name, value in initializers.items() if "." in name and value.dtype.kind == "f"}
    nodes = _parse(graph, initializers, shapes, known.types, parameters)
    shapes.update({name: value.shape for name, value in initializers.items()})
    nodes = simplify(nodes, shapes, initializers, parameters)
    nodes = live_nodes(nodes, graph.output[0].name)
    used = {name for node in nodes for name in node.inputs}
    initializers = {name: value for name, value in initializers.items() if name in used}
    kept = frozenset(parameters) & initializers.keys()
    per_image = frozenset(name for name in batched if known.types.get(name) == onnx.TensorProto.FLOAT)
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
        if proto.output[0] in initializers:  # it was known before
            continue
        if proto.domain not in ("", "ai.onnx"):
            raise GraphError(f"operator {proto.op_type} is not a standard ONNX operator", where=proto.name)
        attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        if proto.op_type == "Constant":
            initializers[proto.output[0]] = constant_value(proto)
            continue
        node = Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, proto.name)
        if node.op == "Dropout" or (node.op == "CastLike" and types.get(node.inputs[0]) == types.get(node.inputs[1])):
            node = Node("Identity", node.inputs[:1], node.outputs[:1], {}, node.name)
        if node.op == "Identity" and node.inputs[0] in initializers.keys() - parameters:
            initializers[node.outputs[0]] = initializers[node.inputs[0]]
        elif node.op == "Split":
            nodes.extend(split_into_slices(node, shapes, initializers))
        else:
            nodes.append(node)
    return nodes
