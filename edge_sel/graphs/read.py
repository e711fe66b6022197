"""Read an ONNX inference graph as plain nodes; rewrite what training has no use for, or what has a plainer form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import LOGITS, Forward, Node, Shape, live_nodes, readers_of
from edge_sel.graphs.shapes import constant_value, evaluate_node, infer_any_batch, shape_of

_END = 2**31 - 1
_CONSTANT = frozenset(
    ("Add", "And", "Cast", "Concat", "ConstantOfShape", "CumSum", "Div", "Equal", "Expand", "Gather", "Greater", "Less",
     "Mod", "Mul", "Not", "Range", "Reshape", "ScatterND", "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze",
     "Where")
)  # fmt: skip
"""Of constants alone these are computed at once, such as the mask of a shifted window."""


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
    told = {v.name: shape_of(v.type) for v in graph.value_info if v.type.tensor_type.HasField("shape")}
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


def simplify(
    nodes: Sequence[Node],
    shapes: dict[str, Shape],
    initializers: dict[str, np.ndarray],
    parameters: Collection[str] = frozenset(),
) -> list[Node]:
    """The nodes, each in its plainest form; initializers and shapes that these need are added.

    What is computed from ``parameters`` changes with them, so it stays.
    """
    plain = []
    for node in nodes:
        if node.op in _CONSTANT and _is_constant(node, initializers, parameters):
            initializers[node.outputs[0]] = value = _computed(node, initializers)
            shapes[node.outputs[0]] = value.shape
            continue
        node = _without_zero_bias(node, initializers, parameters)
        node = _with_explicit_pads(node, shapes)
        node = _with_constant_shape(node, shapes, initializers)
        node = _flatten_of_one_pixel(node, shapes)
        if _takes_all(node, initializers) or _turns_nothing(node):
            node = Node("Identity", node.inputs[:1], node.outputs, {}, node.name)
        if node.op == "Resize":
            plain += _resize_as_products(node, shapes, initializers)
        elif node.op == "LRN":
            plain += _lrn_as_pool(node, shapes, initializers)
        elif node.op == "Range":
            plain += _range_as_sum(node, initializers)
        else:
            plain.append(node)
    return _pads_in_convolutions(plain, initializers)


def split_into_slices(node: Node, shapes: Mapping[str, Shape], initializers: dict[str, np.ndarray]) -> list[Node]:
    """A Split as one Slice per output, as far as the sizes are known: every rule has one output."""
    axis = node.attribute("axis", 0)
    sizes = [shapes[name][axis] if name in shapes else None for name in node.outputs]
    if len(node.inputs) > 1 and node.inputs[1] in initializers:
        sizes = [int(size) for size in initializers[node.inputs[1]]]
    if None in sizes:
        return [node]
    ends = np.cumsum([size or 0 for size in sizes])
    slices = []
    for name, start, end in zip(node.outputs, [0, *ends[:-1]], ends, strict=True):
        bounds = {f"{name}::start": start, f"{name}::end": end, f"{name}::axis": axis}
        initializers.update({key: np.array([value], np.int64) for key, value in bounds.items()})
        slices.append(Node("Slice", (node.inputs[0], *bounds), (name,), {}, f"{node.name}::{name}"))
    return slices


def _takes_all(node: Node, initializers: Mapping[str, np.ndarray]) -> bool:
    """A Slice from the beginning to the end."""
    if node.op != "Slice" or not all(name in initializers for name in node.inputs[1:] if name):
        return False
    _, start, end, *rest = node.inputs
    steps = initializers[rest[1]] if len(rest) > 1 and rest[1] else np.ones(1)
    return not initializers[start].any() and bool((initializers[end] >= _END).all() and (steps == 1).all())


def _turns_nothing(node: Node) -> bool:
    order = list(node.attribute("perm", [])) if node.op == "Transpose" else []
    return bool(order) and order == sorted(order)


def _flatten_of_one_pixel(node: Node, shapes: Mapping[str, Shape]) -> Node:
    """A Reshape of [N, C, 1, 1] to [N, C] as Flatten: it names no number of classes, which a device may raise."""
    if node.op != "Reshape":
        return node
    given, made = shapes.get(node.inputs[0], ()), shapes.get(node.outputs[0], ())
    if len(given) == 4 and given[2:] == (1, 1) and given[0] is None and made == given[:2]:
        return Node("Flatten", node.inputs[:1], node.outputs, {"axis": 1}, node.name)
    return node


def _with_explicit_pads(node: Node, shapes: Mapping[str, Shape]) -> Node:
    """A window that pads by itself (``auto_pad``), with the numbers that this comes to.

    Raises:
        GraphError: they follow from a size that is not known.
    """
    automatic = node.attribute("auto_pad", b"NOTSET")
    if node.op not in ("Conv", "MaxPool", "AveragePool") or automatic in (b"NOTSET", b""):
        return node
    attributes = {key: value for key, value in node.attributes.items() if key != "auto_pad"}
    sizes = shapes.get(node.inputs[0], ())[2:]
    kernel = node.attribute("kernel_shape", None) or shapes.get(node.inputs[1], ())[2:]
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
    return Node(node.op, node.inputs, node.outputs, attributes, node.name)


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


def _lrn_as_pool(node: Node, shapes: dict[str, Shape], initializers: dict[str, np.ndarray]) -> list[Node]:
    """``y = x·(k + α·mean of x² over n channels)^−β`` (Krizhevsky et al. 2012), the mean by a pool along the channels.

    Raises:
        GraphError: the map's size is not known.
    """
    x, y, size = node.inputs[0], node.outputs[0], int(node.attributes["size"])
    shape = shapes.get(x, ())
    if len(shape) != 4 or None in shape[1:]:
        raise GraphError("LRN over a map of unknown size", where=node.name)
    channels, height, width = (n or 0 for n in shape[1:])
    constants: dict[str, np.ndarray] = {
        "rows": np.array([-1, 1, channels, height * width]), "map": np.array([-1, channels, height, width]),
        "alpha": np.float32(node.attribute("alpha", 1e-4)), "bias": np.float32(node.attribute("bias", 1.0)),
        "power": np.float32(-node.attribute("beta", 0.75)),
    }  # fmt: skip
    names = {key: f"{y}::{key}" for key in constants}
    initializers.update({names[key]: np.asarray(value) for key, value in constants.items()})
    rows = (None, 1, channels, height * width)
    pool = {"kernel_shape": [size, 1], "pads": [(size - 1) // 2, 0, size // 2, 0], "count_include_pad": 1}
    steps: tuple[tuple[str, tuple[str, ...], str, Shape, dict[str, Any]], ...] = (
        ("Mul", (x, x), "squares", shape, {}), ("Reshape", ("squares", names["rows"]), "aside", rows, {}),
        ("AveragePool", ("aside",), "means", rows, pool), ("Reshape", ("means", names["map"]), "mean", shape, {}),
        ("Mul", ("mean", names["alpha"]), "scaled", shape, {}), ("Add", ("scaled", names["bias"]), "base", shape, {}),
        ("Pow", ("base", names["power"]), "factor", shape, {}), ("Mul", (x, "factor"), "", shape, {}),
    )  # fmt: skip
    nodes = []
    for op, inputs, made, of, attributes in steps:
        given = tuple(name if name == x or name in initializers else f"{y}::{name}" for name in inputs)
        output = f"{y}::{made}" if made else y
        shapes[output] = of
        nodes.append(Node(op, given, (output,), attributes, f"{node.name}::{made}"))
    return nodes


def _range_as_sum(node: Node, initializers: dict[str, np.ndarray]) -> list[Node]:
    """0, 1 … n − 1 as a running sum of ones: a pack has no operator that makes numbers from nothing.

    Raises:
        GraphError: it counts otherwise.
    """
    start, limit, step = node.inputs
    if any(name not in initializers for name in (start, step)) or (initializers[start] != 0) or initializers[step] != 1:
        raise GraphError("Range that does not count from 0 by 1", where=node.name)
    y = node.outputs[0]
    one, axis = f"{y}::one", f"{y}::axis"
    initializers |= {one: np.ones(1, np.int64), axis: np.array(0, np.int64)}
    return [
        Node("Reshape", (limit, one), (f"{y}::count",), {}, f"{node.name}::count"),
        Node("Expand", (one, f"{y}::count"), (f"{y}::ones",), {}, f"{node.name}::ones"),
        Node("CumSum", (f"{y}::ones", axis), (f"{y}::sum",), {}, f"{node.name}::sum"),
        Node("Sub", (f"{y}::sum", one), (y,), {}, node.name),
    ]


def _resize_as_products(node: Node, shapes: dict[str, Shape], initializers: dict[str, np.ndarray]) -> list[Node]:
    """``y = A·x·Bᵀ`` over the last two axes: interpolation is linear, along each axis on its own.

    A [H', H] and B [W', W] are what ONNX's reference implementation makes of the identity matrix.

    Raises:
        GraphError: the sizes are not known.
    """
    x, y = node.inputs[0], node.outputs[0]
    old, new = shapes.get(x, ()), shapes.get(y, ())
    if len(old) != 4 or old[1] != new[1] or None in (*old[1:], *new[1:]):
        raise GraphError("Resize to a size that is not known", where=node.name, fix="export at a fixed image size")
    rows, columns, between = f"{y}::rows", f"{y}::columns", f"{y}::wide"
    initializers[rows] = _interpolation(node, old[2] or 0, new[2] or 0)
    initializers[columns] = np.ascontiguousarray(_interpolation(node, old[3] or 0, new[3] or 0).T)
    shapes |= {rows: initializers[rows].shape, columns: initializers[columns].shape, between: (*old[:3], new[3])}
    return [
        Node("MatMul", (x, columns), (between,), {}, f"{node.name}::columns"),
        Node("MatMul", (rows, between), (y,), {}, f"{node.name}::rows"),
    ]


def _is_constant(node: Node, initializers: Mapping[str, np.ndarray], parameters: Collection[str]) -> bool:
    """Whether all that it takes is known, and never trained."""
    return all(not name or (name in initializers and name not in parameters) for name in node.inputs)


def _computed(node: Node, initializers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Its one output, by ONNX's reference implementation."""
    proto = helper.make_node(node.op, list(node.inputs), ["y"], **node.attributes)
    (made,) = evaluate_node(proto, initializers)
    return made


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


def _with_constant_shape(node: Node, shapes: Mapping[str, Shape], initializers: dict[str, np.ndarray]) -> Node:
    """A Reshape whose target the exporter computes from the batch size, with the target itself."""
    shape = shapes.get(node.outputs[0], ())
    if node.op != "Reshape" or node.inputs[1] in initializers or not shape or shape.count(None) > 1 or 0 in shape:
        return node
    target = f"{node.outputs[0]}::shape"
    initializers[target] = np.array([-1 if size is None else size for size in shape], np.int64)
    return Node(node.op, (node.inputs[0], target), node.outputs, node.attributes, node.name)


def _without_zero_bias(node: Node, initializers: Mapping[str, np.ndarray], parameters: Collection[str]) -> Node:
    """Drop the all-zero bias that the torch exporter gives to a bias-free convolution."""
    if node.op == "Conv" and len(node.inputs) == 3:
        bias = node.inputs[2]
        if bias not in parameters and bias in initializers and not initializers[bias].any():
            return Node(node.op, node.inputs[:2], node.outputs, node.attributes, node.name)
    return node
