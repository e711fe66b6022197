"""Compute what a graph says about its own sizes, where these are known: a slice's bounds, a roll's shift."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sel.graphs.evaluate_node import evaluate_node
from edge_sel.graphs.ir import BATCH, Shape
from edge_sel.graphs.shapes import infer_shapes

_OPERATORS = frozenset(
    ("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze",
     "Cast", "Identity", "Reshape", "ReduceProd")
)  # fmt: skip
_ROUNDS = 64
"""Each makes more sizes known; in a network that rolls its maps, one of them after the other."""
_BATCHES = (7, 11)
_FIRST_AXES = tuple((size,) for size in _BATCHES)
_MOST = 64
"""Numbers of a tensor; one that tells sizes is small."""


def fold_known_shapes(model: onnx.ModelProto, fixed: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """The model with its integer arithmetic on known sizes done; ``fixed`` as in ``infer_values``."""
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    for _ in range(_ROUNDS):
        if not _fold(folded.graph, infer_shapes(folded, fixed)):
            break
    return folded


def shapes_of_any_batch(model: onnx.ModelProto) -> tuple[dict[str, Shape], frozenset[str]]:
    """Shapes by tensor, and the tensors whose first axis is the batch.

    Both follow from two batch sizes: what is the same for both stands for all, what changes with the batch is None,
    and an axis that has one size and the other is the batch. The names of symbolic axes do not tell, as inference
    forgets them behind a Reshape.
    """
    first, second = (infer_shapes(fold_known_shapes(model, {BATCH: size}), {BATCH: size}) for size in _BATCHES)
    both = {name: (shape, second[name]) for name, shape in first.items() if len(second.get(name, ())) == len(shape)}
    shapes = {name: tuple(a if a == b else None for a, b in zip(*pair, strict=True)) for name, pair in both.items()}
    batched = frozenset(name for name, pair in both.items() if tuple(shape[:1] for shape in pair) == _FIRST_AXES)
    return shapes, batched


def _fold(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> bool:
    """One pass; whether anything was known."""
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


def _value(node: onnx.NodeProto, shapes: Mapping[str, Shape], known: dict[str, np.ndarray]) -> np.ndarray | None:
    """What the node makes, if that is a known list of integers."""
    if node.op_type == "Constant":
        value = constant_value(node)
        return value if value.dtype == np.int64 and value.size <= _MOST else None
    if node.op_type == "Shape" and node.input[0] in shapes:
        dims = shapes[node.input[0]]
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
