"""Executed FLOPs of a compiled graph: what its matrix products and convolutions cost per image."""

from __future__ import annotations

from math import prod

import onnx
from onnx import shape_inference

from edge_sel.graphs.ir import BATCH, CLASSES

_BATCH_SIZE = 8


def executed_flops(model: onnx.ModelProto, classes: int) -> int:
    """2 × multiply-adds of every Conv, ConvTranspose, Gemm and MatMul, per image.

    Elementwise work is not counted, as is usual; it is visible in the joules.
    """
    shapes = _static_shapes(model, classes)
    total = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        a, b, y = (shapes.get(name, ()) for name in (node.input[0], node.input[1], node.output[0]))
        if node.op_type == "Conv":
            total += 2 * prod(y) * prod(b[1:])
        elif node.op_type == "ConvTranspose":
            total += 2 * prod(a) * prod(b[1:])
        elif node.op_type == "Gemm":
            transposed = any(at.name == "transA" and at.i for at in node.attribute)
            total += 2 * prod(y) * a[0 if transposed else 1]
        else:
            total += 2 * prod(y) * a[-1]
    return total // _BATCH_SIZE


def _static_shapes(model: onnx.ModelProto, classes: int) -> dict[str, tuple[int, ...]]:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in [*fixed.graph.input, *fixed.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = _BATCH_SIZE
            elif dim.dim_param == CLASSES:
                dim.dim_value = classes
    fixed = shape_inference.infer_shapes(fixed, data_prop=True)
    graph = fixed.graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return shapes
