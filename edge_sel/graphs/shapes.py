"""The shapes of a graph's tensors, inferred without the values of its weights.

ONNX's inference carries the values of small integer tensors along, which tell the targets of reshapes. Given the values
of weights too it copies them again and again: 7 to 20 GB for a training step whose weights take 30 to 600 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx
from onnx import TensorProto, helper, shape_inference

from edge_sel.graphs.ir import BATCH, CLASSES, Shape


def infer_values(model: onnx.ModelProto, fixed: Mapping[str, int] | None = None) -> list[onnx.ValueInfoProto]:
    """Type and shape of every tensor but the initializers, as far as they can be told.

    Args:
        model: any; what it says of computed tensors is not used.
        fixed: sizes by the names of symbolic axes, such as ``batch``.

    Raises:
        InferenceError: shapes contradict each other.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    listed = {value.name for value in graph.input}  # old files list their weights here too
    weights = set()
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64 or prod(tensor.dims) <= 1:
            graph.initializer.append(tensor)
        elif tensor.name not in listed:
            weights.add(tensor.name)
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if fixed and dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]
    graph = shape_inference.infer_shapes(light, data_prop=True).graph
    return [*graph.value_info, *(value for value in graph.input if value.name not in weights), *graph.output]


def infer_shapes(model: onnx.ModelProto, fixed: Mapping[str, int] | None = None) -> dict[str, Shape]:
    """Shapes by tensor, initializers included; a size that is not known is None."""
    told = {
        value.name: shape_of(value) for value in infer_values(model, fixed) if value.type.tensor_type.HasField("shape")
    }
    return told | {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def static_shapes(model: onnx.ModelProto, classes: int, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a compiled graph for so many images and classes; 0 for a size that is not known."""
    shapes = infer_shapes(model, {BATCH: batch, CLASSES: classes})
    return {name: tuple(size or 0 for size in shape) for name, shape in shapes.items()}


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """Sizes of its axes; None for one that is not fixed."""
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
