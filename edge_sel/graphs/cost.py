"""What a compiled step costs: floating-point operations, and memory for what it computes on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import onnx

from edge_sel.graphs.ir import Node, Shape
from edge_sel.graphs.shapes import static_shapes

_BATCH_SIZE = 8
_BYTES = 4


def executed_flops(model: onnx.ModelProto, classes: int) -> int:
    """2 × multiply-adds of every Conv, ConvTranspose, Gemm and MatMul, per image.

    Elementwise work is not counted, as is usual; it is visible in the joules.
    """
    return _flops(model, static_shapes(model, classes, _BATCH_SIZE))


def _flops(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Per image, of shapes for ``_BATCH_SIZE`` images."""
    total = 0
    for node in model.graph.node:
        transposed = any(at.name == "transA" and at.i for at in node.attribute)
        total += _product_flops(node.op_type, (*node.input[:2], node.output[0]), shapes, transposed)
    return total // _BATCH_SIZE


def node_flops(node: Node, shapes: Mapping[str, Shape]) -> int:
    """The same for one node of a forward graph, with 1 for a size that is not known."""
    names = *node.inputs[:2], node.outputs[0]
    known = {name: tuple(size or 1 for size in shapes.get(name, ())) for name in names}
    return _product_flops(node.op, names, known, bool(node.attribute("transA", 0)))


def _product_flops(op: str, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], transposed: bool) -> int:
    """2 × multiply-adds of an operator; 0 for what is no product.

    Args:
        op: the operator.
        names: of its two operands and its output.
        shapes: by name.
        transposed: whether a Gemm's first operand is.
    """
    if op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    a, b, y = (shapes.get(name, ()) for name in names)
    if op == "Conv":
        return 2 * prod(y) * prod(b[1:])
    if op == "ConvTranspose":
        return 2 * prod(a) * prod(b[1:])
    return 2 * prod(y) * a[0 if transposed else -1]


def step_cost(model: onnx.ModelProto, classes: int) -> tuple[int, int]:
    """``executed_flops``, and what one more image adds to ``peak_activation_bytes``."""
    shapes = static_shapes(model, classes, _BATCH_SIZE)
    twice = static_shapes(model, classes, 2 * _BATCH_SIZE)
    return _flops(model, shapes), (_peak_bytes(model, twice) - _peak_bytes(model, shapes)) // _BATCH_SIZE


def peak_activation_bytes(model: onnx.ModelProto, classes: int, batch: int) -> int:
    """Largest sum of computed tensors that are alive at once: activations and gradients, not weights.

    A tensor is alive from the node that makes it to the last node that reads it, in the graph's order; an engine may
    choose another. Every element counts 4 bytes.
    """
    return _peak_bytes(model, static_shapes(model, classes, batch))


def _peak_bytes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    last = {name: number for number, node in enumerate(model.graph.node) for name in node.input}
    alive = peak = 0
    ends: dict[int, int] = {}
    for number, node in enumerate(model.graph.node):
        for name in node.output:
            size = _BYTES * prod(shapes.get(name, (0,)))
            alive += size
            end = last.get(name, len(model.graph.node))
            ends[end] = ends.get(end, 0) + size
        peak = max(peak, alive)
        alive -= ends.pop(number, 0)
    return peak
