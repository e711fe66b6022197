"""Compute what a graph says about its own sizes, where these are known: a slice's bounds, a roll's shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edge_sel.graphs.evaluate_node import evaluate_node
from edge_sel.graphs.ir import BATCH, Shape

_OPERATORS = frozenset(
    ("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze",
     "Cast", "Identity", "Reshape", "ReduceProd")
)  # fmt: skip
_ROUNDS = 64
"""Each makes more sizes known; in a network that rolls its maps, one of them after the other."""
_BATCHES = (7, 11)
_MOST = 64
"""Numbers of a tensor; one that tells sizes is small."""


def fold_known_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its integer arithmetic on known sizes done, and with the shapes of its tensors."""
    for _ in range(_ROUNDS):
        model = shape_inference.infer_shapes(model, data_prop=True)
        if not _fold(model.graph):
            break
        del model.graph.value_info[:]
    return model


def shapes_of_any_batch(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes by tensor: what is the same for two batch sizes stands for all, also where it is computed from the batch.

    Sizes that change with the batch are None.
    """
    first, second = (_shapes(fold_known_shapes(_with_batch(model, size))) for size in _BATCHES)
    return {
        name: tuple(a if a == b else None for a, b in zip(shape, second[name], strict=True))
        for name, shape in first.items()
        if name in second and len(second[name]) == len(shape)
    }


def _with_batch(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = size
    return fixed


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {v.name: shape_of(v) for v in values if v.type.tensor_type.HasField("shape")}


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """Sizes of its axes; None for one that is not fixed."""
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _fold(graph: onnx.GraphProto) -> bool:
    """One pass; whether anything was known."""
    values = [*graph.value_info, *graph.input]
    shapes = {v.name: v.type.tensor_type.shape.dim for v in values if v.type.tensor_type.HasField("shape")}
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT64}
    known = {name: value for name, value in known.items() if value.size <= _MOST}
    kept, fresh = [], {}
    for node in graph.node:
        value = _value(node, shapes, known)
        if value is None:
            kept.append(node)
        else:
            known[node.output[0]] = fresh[node.output[0]] = value
    if not fresh:
        return False
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in fresh.items())
    return True


def _value(
    node: onnx.NodeProto, shapes: Mapping[str, Sequence[Any]], known: dict[str, np.ndarray]
) -> np.ndarray | None:
    """What the node makes, if that is a known list of integers."""
    if node.op_type == "Constant":
        value = constant_value(node)
        return value if value.dtype == np.int64 and value.size <= _MOST else None
    if node.op_type == "Shape" and node.input[0] in shapes:
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in shapes[node.input[0]]]
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        wanted = dims[bounds.get("start", 0) : bounds.get("end", len(dims))]
        return None if None in wanted else np.array(wanted, np.int64)
    if node.op_type not in _OPERATORS or not node.input or not all(n in known for n in node.input if n):
        return None
    (value,) = evaluate_node(node, known)
    return value if value.dtype == np.int64 and value.size <= _MOST else None


def constant_value(node: onnx.NodeProto) -> np.ndarray:
    """Of a ``Constant``."""
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value, np.int64 if attribute.name.startswith("value_int") else np.float32)
