"""Read an ONNX inference graph as plain nodes; rewrite what training has no use for, or what has a plainer form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import LOGITS, Absent, Forward, Node, Shape, live_nodes, readers_of
from edge_sel.graphs.shapes import constant_value, evaluate_node, infer_any_batch, shape_of

_END = 2**31 - 1
_CONSTANT = frozenset(
    ("Add", "And", "Cast", "Concat", "ConstantOfShape", "CumSum", "Div", "Equal", "Expand", "Gather", "Greater", "Less",
     "Mod", "Mul", "Not", "Range", "Reshape", "ScatterND", "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze",
     "Where")
)  # fmt: skip
"""Of constants alone these are computed at once, such as the mask of a shifted window."""


def read_forward(
    model: onnx.ModelProto,
    parameters: Collection[str] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
) -> Forward:
    """Parse a forward graph, without what training has no use for.

    Constant, Dropout, CastLike and Split nodes, zero biases and computed shapes that are known are simplified away.

    Args:
        model: the inference graph.
        parameters: which initializers are weights; by default those of floats with a module path (a dot) in the name.
        weights: values of tensors that the graph only refers to; others are absent, as in a dry run.

    Raises:
        GraphError: not exactly one image input and one output, or operators outside the standard domain.
    """
    graph = model.graph
    initializers = {tensor.name: _values(tensor, weights or {}) for tensor in graph.initializer}
    inputs = [i.name for i in graph.input if i.name not in initializers]
    if len(inputs) != 1 or len(graph.output) != 1 or graph.output[0].name != LOGITS:
        raise GraphError("a forward graph needs one image input and one output named logits", where=graph.name)
    known, batched = infer_any_batch(model)
    declared = {v.name: shape_of(v.type) for v in graph.value_info if v.type.tensor_type.HasField("shape")}
    shapes = declared | known.shapes
    initializers |= known.values
    if parameters is None:
        parameters = {name for name, value in initializers.items() if "." in name and value.dtype.kind == "f"}
    plain = _Plain(shapes, initializers, parameters)
    nodes = plain.parsed(graph, known.types)
    shapes.update({name: value.shape for name, value in initializers.items()})
    for node in nodes:
        plain.add(node)
    nodes = live_nodes(_pads_in_convolutions(plain.nodes, initializers), graph.output[0].name)
    used = {name for node in nodes for name in node.inputs}
    initializers = {name: value for name, value in initializers.items() if name in used}
    kept = frozenset(parameters) & initializers.keys()
    per_image = frozenset(name for name in batched if known.types.get(name) == onnx.TensorProto.FLOAT)
    return Forward(tuple(nodes), initializers, shapes, inputs[0], graph.output[0].name, kept, per_image)


def _values(tensor: onnx.TensorProto, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return weights[tensor.name] if tensor.name in weights else Absent.of(tuple(tensor.dims))
    return np.asarray(numpy_helper.to_array(tensor))


class _Plain:
    """The nodes so far, each in its plainest form; initializers and shapes that these need are added.

    What is computed from ``parameters`` changes with them, so it stays.
    """

    def __init__(
        self, shapes: dict[str, Shape], initializers: dict[str, np.ndarray], parameters: Collection[str]
    ) -> None:
        self.nodes: list[Node] = []
        self._shapes, self._initializers, self._parameters = shapes, initializers, parameters

    def parsed(self, graph: onnx.GraphProto, types: Mapping[str, int]) -> list[Node]:
        """The graph's nodes; what is constant joins the initializers instead."""
        initializers = self._initializers
        nodes: list[Node] = []
        for proto in graph.node:
            if proto.output[0] in initializers:  # it was known before
                continue
            if proto.domain not in ("", "ai.onnx"):
                raise GraphError(f"operator {proto.op_type} is not a standard ONNX operator", where=proto.name)
            if proto.op_type == "Constant":
                initializers[proto.output[0]] = constant_value(proto)
                continue
            attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
            node = Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, proto.name)
            same = node.op == "CastLike" and types.get(node.inputs[0]) == types.get(node.inputs[1])
            if node.op == "Dropout" or same:
                node = _identity(node)
            if node.op == "Identity" and node.inputs[0] in initializers.keys() - self._parameters:
                initializers[node.outputs[0]] = initializers[node.inputs[0]]
            else:
                nodes += self._slices(node) if node.op == "Split" else [node]
        return nodes

    def _slices(self, node: Node) -> list[Node]:
        """A Split as one Slice per output, as far as the sizes are known: every rule has one output."""
        axis = node.attribute("axis", 0)
        sizes = [self._shapes[name][axis] if name in self._shapes else None for name in node.outputs]
        if len(node.inputs) > 1 and node.inputs[1] in self._initializers:
            sizes = [int(size) for size in self._initializers[node.inputs[1]]]
        if None in sizes:
            return [node]
        ends = np.cumsum([size or 0 for size in sizes])
        slices = []
        for name, start, end in zip(node.outputs, [0, *ends[:-1]], ends, strict=True):
            bounds = {f"{name}::start": start, f"{name}::end": end, f"{name}::axis": axis}
            self._initializers.update({key: np.array([value], np.int64) for key, value in bounds.items()})
            slices.append(Node("Slice", (node.inputs[0], *bounds), (name,), {}, f"{node.name}::{name}"))
        return slices

    def add(self, node: Node) -> None:
        """Append the node, or what it is replaced by."""
        given = [name for name in node.inputs if name]
        if node.op in _CONSTANT and all(n in self._initializers and n not in self._parameters for n in given):
            proto = helper.make_node(node.op, list(node.inputs), ["y"], **node.attributes)
            (value,) = evaluate_node(proto, self._initializers)
            self._initializers[node.outputs[0]], self._shapes[node.outputs[0]] = value, value.shape
        elif node.op == "Resize":
            self._resize_as_products(node)
        elif node.op == "LRN":
            self._lrn_as_pool(node)
        elif node.op == "Range":
            self._range_as_sum(node)
        elif node.op in ("Conv", "MaxPool", "AveragePool"):
            self.nodes.append(self._with_explicit_pads(self._without_zero_bias(node)))
        elif node.op == "Reshape":
            self.nodes.append(self._reshape(node))
        else:
            self.nodes.append(_identity(node) if self._changes_nothing(node) else node)

    def _emit(self, op: str, inputs: tuple[str, ...], output: str, name: str, **attributes: Any) -> str:
        self.nodes.append(Node(op, inputs, (output,), attributes, name))
        return output

    def _changes_nothing(self, node: Node) -> bool:
        """A Slice from the beginning to the end, or a Transpose that keeps the order."""
        known = self._initializers
        if node.op == "Slice" and all(name in known for name in node.inputs[1:] if name):
            _, start, end, *rest = node.inputs
            steps = known[rest[1]] if len(rest) > 1 and rest[1] else np.ones(1)
            return not known[start].any() and bool((known[end] >= _END).all() and (steps == 1).all())
        order = list(node.attribute("perm", [])) if node.op == "Transpose" else []
        return bool(order) and order == sorted(order)

    def _reshape(self, node: Node) -> Node:
        """A Reshape of [N, C, 1, 1] to [N, C] as Flatten: it names no number of classes, which a device may raise.

        Of any other the target is made constant, where the exporter computes it from the batch size.
        """
        given, made = (self._shapes.get(name, ()) for name in (node.inputs[0], node.outputs[0]))
        if len(given) == 4 and given[2:] == (1, 1) and given[0] is None and made == given[:2]:
            return Node("Flatten", node.inputs[:1], node.outputs, {"axis": 1}, node.name)
        if node.inputs[1] in self._initializers or not made or made.count(None) > 1 or 0 in made:
            return node
        target = f"{node.outputs[0]}::shape"
        self._initializers[target] = np.array([-1 if size is None else size for size in made], np.int64)
        return replace(node, inputs=(node.inputs[0], target))

    def _without_zero_bias(self, node: Node) -> Node:
        """Drop the all-zero bias that the torch exporter gives to a bias-free convolution."""
        bias = node.inputs[2] if node.op == "Conv" and len(node.inputs) == 3 else ""
        zero = bias not in self._parameters and bias in self._initializers and not self._initializers[bias].any()
        return replace(node, inputs=node.inputs[:2]) if zero else node

    def _with_explicit_pads(self, node: Node) -> Node:
        """A window that pads by itself (``auto_pad``), with the numbers that this comes to.

        Raises:
            GraphError: they follow from a size that is not known.
        """
        automatic = node.attribute("auto_pad", b"NOTSET")
        if automatic in (b"NOTSET", b""):
            return node
        attributes = {key: value for key, value in node.attributes.items() if key != "auto_pad"}
        sizes = self._shapes.get(node.inputs[0], ())[2:]
        kernel = node.attribute("kernel_shape", None) or self._shapes.get(node.inputs[1], ())[2:]
        if automatic != b"VALID":
            if not sizes or None in sizes:
                raise GraphError(f"{node.op} with auto_pad over a map of unknown size", where=node.name)
            ones = [1] * len(sizes)
            strides, dilations = node.attribute("strides", ones), node.attribute("dilations", ones)
            total = [
                max(0, (-(-(size or 0) // stride) - 1) * stride + (window - 1) * dilation + 1 - (size or 0))
                for size, stride, window, dilation in zip(sizes, strides, kernel, dilations, strict=True)
            ]
            small, large = [pad // 2 for pad in total], [pad - pad // 2 for pad in total]
            attributes["pads"] = [*small, *large] if automatic == b"SAME_UPPER" else [*large, *small]
        return replace(node, attributes=attributes)

    def _lrn_as_pool(self, node: Node) -> None:
        """``y = x·(k + α·mean of x² over n channels)^−β`` (Krizhevsky et al. 2012), the mean by a pool along channels.

        Raises:
            GraphError: the map's size is not known.
        """
        x, y, size = node.inputs[0], node.outputs[0], int(node.attributes["size"])
        shape = self._shapes.get(x, ())
        if len(shape) != 4 or None in shape[1:]:
            raise GraphError("LRN over a map of unknown size", where=node.name)
        channels, height, width = (n or 0 for n in shape[1:])
        rows = (None, 1, channels, height * width)

        def constant(what: str, value: object) -> str:
            self._initializers[f"{y}::{what}"] = np.asarray(value)
            return f"{y}::{what}"

        def add(op: str, inputs: tuple[str, ...], what: str, made: Shape = shape, **attributes: Any) -> str:
            self._shapes[f"{y}::{what}"] = made
            return self._emit(op, inputs, f"{y}::{what}", f"{node.name}::{what}", **attributes)

        flat, back = constant("rows", [-1, 1, channels, height * width]), constant("map", [-1, channels, height, width])
        alpha = constant("alpha", np.float32(node.attribute("alpha", 1e-4)))
        bias = constant("bias", np.float32(node.attribute("bias", 1.0)))
        power = constant("power", np.float32(-node.attribute("beta", 0.75)))
        aside = add("Reshape", (add("Mul", (x, x), "squares"), flat), "aside", rows)
        pads = [(size - 1) // 2, 0, size // 2, 0]
        means = add("AveragePool", (aside,), "means", rows, kernel_shape=[size, 1], pads=pads, count_include_pad=1)
        scaled = add("Mul", (add("Reshape", (means, back), "mean"), alpha), "scaled")
        factor = add("Pow", (add("Add", (scaled, bias), "base"), power), "factor")
        self._shapes[y] = shape
        self._emit("Mul", (x, factor), y, f"{node.name}::")

    def _range_as_sum(self, node: Node) -> None:
        """0, 1 … n − 1 as a running sum of ones: a pack has no operator that makes numbers from nothing.

        Raises:
            GraphError: it counts otherwise.
        """
        start, limit, step = node.inputs
        known, y = self._initializers, node.outputs[0]
        if any(name not in known for name in (start, step)) or (known[start] != 0) or known[step] != 1:
            raise GraphError("Range that does not count from 0 by 1", where=node.name)
        one, axis = f"{y}::one", f"{y}::axis"
        known |= {one: np.ones(1, np.int64), axis: np.array(0, np.int64)}
        count = self._emit("Reshape", (limit, one), f"{y}::count", f"{node.name}::count")
        ones = self._emit("Expand", (one, count), f"{y}::ones", f"{node.name}::ones")
        total = self._emit("CumSum", (ones, axis), f"{y}::sum", f"{node.name}::sum")
        self._emit("Sub", (total, one), y, node.name)

    def _resize_as_products(self, node: Node) -> None:
        """``y = A·x·Bᵀ`` over the last two axes: interpolation is linear, along each axis on its own.

        A [H', H] and B [W', W] are what ONNX's reference implementation makes of the identity matrix.

        Raises:
            GraphError: the sizes are not known.
        """
        x, y = node.inputs[0], node.outputs[0]
        old, new = self._shapes.get(x, ()), self._shapes.get(y, ())
        if len(old) != 4 or old[1] != new[1] or None in (*old[1:], *new[1:]):
            raise GraphError("Resize to a size that is not known", where=node.name, fix="export at a fixed image size")
        rows, columns = f"{y}::rows", f"{y}::columns"
        left = _interpolation(node, old[2] or 0, new[2] or 0)
        right = np.ascontiguousarray(_interpolation(node, old[3] or 0, new[3] or 0).T)
        self._initializers.update({rows: left, columns: right})
        self._shapes.update({rows: left.shape, columns: right.shape, f"{y}::wide": (*old[:3], new[3])})
        between = self._emit("MatMul", (x, columns), f"{y}::wide", f"{node.name}::columns")
        self._emit("MatMul", (rows, between), y, f"{node.name}::rows")


def _identity(node: Node) -> Node:
    return Node("Identity", node.inputs[:1], node.outputs[:1], {}, node.name)


def _pads_in_convolutions(nodes: Sequence[Node], initializers: Mapping[str, np.ndarray]) -> list[Node]:
    """A Pad with zeros that only a convolution reads becomes that convolution's own."""
    readers = readers_of(nodes)
    around: dict[str, tuple[str, list[int]]] = {}
    plain = []
    for node in nodes:
        pads = _zeros_around_maps(node, initializers)
        if pads is not None and [reader.op for reader in readers.get(node.outputs[0], [])] == ["Conv"]:
            around[node.outputs[0]] = node.inputs[0], pads
        elif node.op == "Conv" and node.inputs[0] in around:
            x, more = around[node.inputs[0]]
            own = [a + b for a, b in zip(node.attribute("pads", [0] * len(more)), more, strict=True)]
            plain.append(replace(node, inputs=(x, *node.inputs[1:]), attributes={**node.attributes, "pads": own}))
        else:
            plain.append(node)
    return plain


def _zeros_around_maps(node: Node, initializers: Mapping[str, np.ndarray]) -> list[int] | None:
    """Padding of the two axes of each map, at the beginning of both and then at their ends; None of another node."""
    if node.op != "Pad" or node.attribute("mode", b"constant") != b"constant" or len(node.inputs) > 3:
        return None
    pads, *value = (initializers.get(name) for name in node.inputs[1:] if name)
    if pads is None or len(pads) != 8 or pads.min() < 0 or any(v is None or v.any() for v in value):
        return None
    return None if pads[[0, 1, 4, 5]].any() else [int(size) for size in pads[[2, 3, 6, 7]]]


def _interpolation(node: Node, old: int, new: int) -> np.ndarray:
    """[new, old]: row i holds the share of each old place in the new place i."""
    kept = {k: v for k, v in node.attributes.items() if k not in ("axes", "keep_aspect_ratio_policy")}
    proto = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **kept)
    given: dict[str, np.ndarray] = {
        "x": np.eye(old, dtype=np.float32)[None],
        "sizes": np.array([1, old, new], np.int64),
    }
    (made,) = evaluate_node(proto, given)
    return np.ascontiguousarray(made[0].T, np.float32)
