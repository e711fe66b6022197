"""Emit ONNX nodes one call at a time; constants are shared. Leave out nodes, and widen scalars."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sel.graphs.ir import BATCH, CLASSES, IR_VERSION, OPSET, Absent, Node
from edge_sel.graphs.shapes import infer

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


def reference_to(name: str, shape: Sequence[int]) -> onnx.TensorProto:
    """A tensor of float32 whose numbers are with whoever runs the graph."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="given")
    return tensor


def _initializer(value: np.ndarray, name: str) -> onnx.TensorProto:
    return reference_to(name, value.shape) if isinstance(value, Absent) else numpy_helper.from_array(value, name)


class Builder:
    """Collects nodes and constants; every method returns the name of the tensor that it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def op(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append an operator with one output; ``node_name`` is the name of the node itself."""
        return self.multi(op, *inputs, names=[name], **attributes)[0]

    def multi(
        self, op: str, *inputs: str, names: Sequence[str | None], node_name: str | None = None, **attributes: Any
    ) -> list[str]:
        """Append an operator with several outputs; ``None`` in ``names`` asks for a fresh name."""
        self._count += 1
        outputs = [name or f"{op}_{self._count}_{i}" for i, name in enumerate(names)]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, node_name or f"{op}_{self._count}", **attributes))
        return outputs

    def copy(self, node: Node) -> None:
        """Append a forward node unchanged."""
        self.nodes.append(
            helper.make_node(node.op, list(node.inputs), list(node.outputs), node.name, **node.attributes)
        )

    def not_before(self, name: str, other: str) -> str:
        """A copy of a tensor that cannot be computed before the other tensor is.

        Else a runtime would compute at once what depends on it alone, and keep the result until it is needed.
        """
        one = self.op("Slice", self.op("Reshape", other, self.ints(-1)), self.ints(0), self.ints(1))
        return self.op("Add", name, self.op("Mul", one, self.scalar(0.0)))

    def constant(self, value: Any, dtype: Any) -> str:
        """A constant tensor; equal constants share one name."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = f"const_{len(self._shared)}"
            self.constants[self._shared[key]] = array
        return self._shared[key]

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.constant(values, np.int64)

    def scalar(self, value: float) -> str:
        """A float32 scalar constant."""
        return self.constant(value, np.float32)

    def floats(self, value: Any) -> str:
        """A float32 constant of any shape."""
        return self.constant(value, np.float32)

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        initializers: dict[str, np.ndarray],
        name: str,
    ) -> onnx.ModelProto:
        """The finished model; only the initializers that some node reads are kept."""
        taken: set[str] = set()  # a forward graph may call a node as a later one is called here
        for node in self.nodes:
            while node.name and node.name in taken:
                node.name += "_"
            taken.add(node.name)
        used = {i for node in self.nodes for i in node.input}
        given = {i.name for i in inputs}
        kept = {n: v for n, v in {**initializers, **self.constants}.items() if n in used and n not in given}
        graph = helper.make_graph(
            self.nodes,
            name,
            list(inputs),
            list(outputs),
            [_initializer(v, n) for n, v in kept.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edge-sel")
        model.ir_version = IR_VERSION
        spread_scalars(model)
        return model


def prune(graph: onnx.GraphProto, wanted: Collection[str]) -> None:
    """Keep only the nodes that some of the wanted tensors are computed by, in their order."""
    needed, kept = set(wanted), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept[::-1])


def spread_scalars(model: onnx.ModelProto) -> None:
    """Give scalars the rank of what they are combined with, where ONNX Runtime is slow otherwise.

    A scalar beside a tensor whose last axis has one element, such as the weights [O, I, 1, 1] of a 1×1 convolution, is
    combined with it element by element: 50 to 100 times slower than a scalar of the shape [1, 1, 1, 1] (onnxruntime
    1.31). The graph is changed in place; what it computes stays the same.
    """
    # So many images and classes that what has an axis of them is not small.
    graph, shapes = model.graph, infer(model, {BATCH: _FEW, CLASSES: _FEW}).shapes
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name in shapes}
    made: set[str] = set()
    nodes: list[onnx.NodeProto] = []

    def add_constant(value: np.ndarray, name: str) -> None:
        graph.initializer.append(numpy_helper.from_array(value, name))
        made.add(name)

    for node in graph.node:
        shape = shapes.get(node.output[0], ()) if node.op_type in _ELEMENTWISE else ()
        rank = len(shape)
        slow = rank > 1 and shape[-1] == 1 and prod(size or _FEW for size in shape) >= _FEW
        for place, name in enumerate(node.input if slow else ()):
            if shapes.get(name) not in ((), (1,)):
                continue
            node.input[place] = wide = f"{name}::rank{rank}"
            if wide not in made and name in constants:
                add_constant(numpy_helper.to_array(constants[name]).reshape((1,) * rank), wide)
            elif wide not in made:
                ones = f"ones::{rank}"
                if ones not in made:
                    add_constant(np.ones(rank, np.int64), ones)
                nodes.append(helper.make_node("Reshape", [name, ones], [wide], wide))
                made.add(wide)
        nodes.append(node)
    if made:
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
