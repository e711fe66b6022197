"""What is known of a graph's tensors before it runs: types, shapes, and whole numbers that tell sizes.

One pass over the nodes, each by ONNX's own inference for its operator. ONNX's inference for whole graphs carries values
along too, but in copies that grow with the square of the graph: 1 to 20 GB for one training step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from edge_sel.graphs.ir import BATCH, CLASSES, OPSET, Shape

_SIZES = ({BATCH: 7, CLASSES: 13}, {BATCH: 11, CLASSES: 17})
"""A size that is the same for both is taken to be the same for all numbers of images and classes."""
_ARITHMETIC = frozenset(
    ("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze",
     "Cast", "Identity", "Reshape", "ReduceProd")
)  # fmt: skip
_WHOLE = (TensorProto.INT64, TensorProto.INT32)
_MOST = 64
"""Numbers of a tensor; one that tells sizes is small."""


class Known(NamedTuple):
    """Of the tensors of a graph, by name, as far as it could be told.

    Attributes:
        types: ONNX's number of the element type.
        shapes: an unknown size is None.
        values: whole numbers, of constants and of what is computed from known sizes.
    """

    types: dict[str, int]
    shapes: dict[str, Shape]
    values: dict[str, np.ndarray]


def infer(model: onnx.ModelProto, fixed: Mapping[str, int]) -> Known:
    """One pass; what the model says of computed tensors is not used.

    Args:
        model: a graph in the order of its computation, whose nodes hold no graphs.
        fixed: sizes by the names of symbolic axes, such as ``batch``; others are unknown.
    """
    opset = int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))
    graph, found = model.graph, _Pass(opset)
    for tensor in graph.initializer:
        found.constant(tensor)
    for value in (*graph.input, *(output for output in graph.output if output.type.tensor_type.elem_type)):
        if value.name not in found.types:
            found.types[value.name] = _fixed(value.type, fixed)
    for node in graph.node:
        found.node(node)
    types = {name: kind.tensor_type.elem_type for name, kind in found.types.items()}
    shapes = {name: shape_of(kind) for name, kind in found.types.items() if kind.tensor_type.HasField("shape")}
    return Known(types, shapes, found.values)


def infer_any_batch(model: onnx.ModelProto) -> tuple[Known, frozenset[str]]:
    """What holds for any number of images, and the names of the tensors whose first axis is that of the images.

    Both follow from two numbers of images: what is the same for both holds for all, what differs is unknown, and an
    axis that has the one size and then the other is the batch. Names of symbolic axes do not tell: behind a Reshape
    they are forgotten.
    """
    first, second = (infer(model, sizes) for sizes in _SIZES)
    values = {
        name: value for name, value in first.values.items()
        if name in second.values and np.array_equal(value, second.values[name])
    }  # fmt: skip
    shapes = _same_for_both(first.shapes, second.shapes)
    ends = tuple((sizes[BATCH],) for sizes in _SIZES)
    batched = frozenset(name for name in shapes if tuple(known.shapes[name][:1] for known in (first, second)) == ends)
    return Known(first.types, shapes, values), batched


def _same_for_both(first: Mapping[str, Shape], second: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of the tensors that have the same rank in both, None for sizes that differ."""
    both = {name: (shape, second[name]) for name, shape in first.items() if name in second}
    return {
        name: tuple(a if a == b else None for a, b in zip(*pair, strict=True))
        for name, pair in both.items() if len(pair[0]) == len(pair[1])
    }  # fmt: skip


def static_shapes(model: onnx.ModelProto, classes: int, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a compiled graph for so many images and classes; 0 for a size that is not known."""
    shapes = infer(model, {BATCH: batch, CLASSES: classes}).shapes
    return {name: tuple(size or 0 for size in shape) for name, shape in shapes.items()}


class _Pass:
    """What is known so far: types by name, tensors whose values are known, and of these the whole numbers."""

    def __init__(self, opset: int) -> None:
        self.types: dict[str, onnx.TypeProto] = {}
        self.values: dict[str, np.ndarray] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._opset = opset

    def constant(self, tensor: onnx.TensorProto) -> None:
        self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        if tensor.data_location != TensorProto.EXTERNAL and int(np.prod(tensor.dims)) <= _MOST:
            self._tensors[tensor.name] = tensor
            if tensor.data_type in _WHOLE:
                self.values[tensor.name] = numpy_helper.to_array(tensor)

    def node(self, node: onnx.NodeProto) -> None:
        value = self._value(node)
        if value is not None:
            self.constant(numpy_helper.from_array(value, node.output[0]))
            return
        schema = _schema(node.op_type, node.domain, self._opset)
        given = {name: self.types[name] for name in node.input if name in self.types}
        if schema is None or len(given) < len({name for name in node.input if name}):
            return
        known = {name: self._tensors[name] for name in node.input if name in self._tensors}
        try:
            if schema.has_type_and_shape_inference_function:
                made = shape_inference.infer_node_outputs(schema, node, given, known)
            else:  # it is defined by other operators
                made = _infer_alone(node, given, self._opset)
        except Exception:  # of onnx, which has no common class: nothing is known of what this makes
            return
        self.types |= {name: kind for name, kind in made.items() if name}

    def _value(self, node: onnx.NodeProto) -> np.ndarray | None:
        """What the node makes, if that is a known list of whole numbers."""
        if node.op_type == "Constant":
            value = constant_value(node)
        elif node.op_type == "Shape" and node.input[0] in self.types:
            kind = self.types[node.input[0]]
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            sizes = shape_of(kind)[bounds.get("start", 0) : bounds.get("end")]
            if None in sizes or not kind.tensor_type.HasField("shape"):
                return None
            value = np.array(sizes, np.int64)
        elif node.op_type in _ARITHMETIC and node.input and all(n in self.values for n in node.input if n):
            (value,) = evaluate_node(node, self.values, self._opset)
        else:
            return None
        return value if value.dtype in (np.int64, np.int32) and value.size <= _MOST else None


def _infer_alone(node: onnx.NodeProto, given: Mapping[str, onnx.TypeProto], opset: int) -> dict[str, onnx.TypeProto]:
    """What a node makes, by ONNX's inference for a graph of it alone."""
    inputs = [helper.make_value_info(name, kind) for name, kind in given.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "alone", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return {value.name: value.type for value in shape_inference.infer_shapes(model).graph.output}


def shape_of(kind: onnx.TypeProto) -> Shape:
    """Sizes of a tensor's axes; None for one that is not fixed."""
    dims = kind.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def constant_value(node: onnx.NodeProto) -> np.ndarray:
    """Of a ``Constant``."""
    attribute = node.attribute[0]
    value: Any = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value, np.int64 if attribute.name.startswith("value_int") else np.float32)


def _fixed(kind: onnx.TypeProto, fixed: Mapping[str, int]) -> onnx.TypeProto:
    """The type with symbolic axes at their sizes, or open."""
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return kind
    dims = [dim.dim_value if dim.HasField("dim_value") else fixed.get(dim.dim_param) for dim in tensor.shape.dim]
    return helper.make_tensor_type_proto(tensor.elem_type, dims)


@cache
def _schema(op: str, domain: str, opset: int) -> Any:
    """Of an operator; None where onnx knows none."""
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


def evaluate_node(node: onnx.NodeProto, values: Mapping[str, np.ndarray], opset: int = OPSET) -> list[np.ndarray]:
    """The outputs of a node, by ONNX's reference implementation.

    Args:
        node: any; its attributes may not be whole graphs that read other tensors.
        values: of all of its inputs.
        opset: that the node is of.
    """
    names = dict.fromkeys(name for name in node.input if name)
    inputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output if name]
    graph = helper.make_graph([node], "one", inputs, outputs)
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))
    return [np.asarray(value) for value in evaluator.run(None, {name: values[name] for name in names})]
