"""Give scalars the rank of what they are combined with, where ONNX Runtime is slow otherwise.

A scalar beside a tensor whose last axis has one element, such as the weights [O, I, 1, 1] of a 1×1 convolution, is
combined with it element by element: 50 to 100 times slower than a scalar of the shape [1, 1, 1, 1] (onnxruntime 1.31).
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_sel.graphs.shapes import infer_shapes

_ELEMENTWISE = frozenset(
    (
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Max",
        "Min",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
        "Equal",
        "Where",
    )
)
_FEW = 256
"""Elements below which the time does not count."""


def spread_scalars(model: onnx.ModelProto) -> None:
    """Change the graph in place; what it computes stays the same."""
    graph = model.graph
    shapes = infer_shapes(model)
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name in shapes}
    made: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        shape = shapes.get(node.output[0], ()) if node.op_type in _ELEMENTWISE else ()
        slow = len(shape) > 1 and shape[-1] == 1 and prod(size or _FEW for size in shape) >= _FEW
        for place, name in enumerate(node.input if slow else ()):
            if shapes.get(name) not in ((), (1,)):
                continue
            key = (name, len(shape))
            if key not in made:
                made[key] = f"{name}::rank{len(shape)}"
                if name in constants:
                    value = numpy_helper.to_array(constants[name]).reshape((1,) * len(shape))
                    graph.initializer.append(numpy_helper.from_array(value, made[key]))
                else:
                    nodes.append(_reshape(name, made[key], len(shape), graph))
            node.input[place] = made[key]
        nodes.append(node)
    if made:
        del graph.node[:]
        graph.node.extend(nodes)
        _drop_unused(graph)


def _reshape(name: str, to: str, rank: int, graph: onnx.GraphProto) -> onnx.NodeProto:
    target = f"ones::{rank}"
    if all(tensor.name != target for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.ones(rank, np.int64), target))
    return helper.make_node("Reshape", [name, target], [to], to)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
