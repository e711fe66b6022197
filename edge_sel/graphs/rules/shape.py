"""Operators that only move numbers."""

from __future__ import annotations

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node, Shape
from edge_sel.graphs.rules.elementwise import unbroadcast
from edge_sel.graphs.rules.registry import Gradients, Grads, known, rule

_END = 2**31 - 1


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(g: Gradients, node: Node, dy: str) -> Grads:
    """The gradient takes the input's shape again."""
    return [g.op("Reshape", dy, g.op("Shape", node.inputs[0]))]


@rule("Transpose")
def transpose(g: Gradients, node: Node, dy: str) -> Grads:
    """The inverse permutation."""
    rank = len(g.shape(node.inputs[0]))
    perm = list(node.attribute("perm", reversed(range(rank))))
    return [g.op("Transpose", dy, perm=[int(i) for i in np.argsort(perm)])]


@rule("Concat")
def concat(g: Gradients, node: Node, dy: str) -> Grads:
    """Each input gets its slice."""
    axis = int(node.attributes["axis"])
    start, grads = 0, []
    for name in node.inputs:
        size = known(g.shape(name)[axis], "Concat along an axis of unknown size", node.name)
        wanted = g.needs(name)
        grads.append(g.op("Slice", dy, g.ints(start), g.ints(start + size), g.ints(axis)) if wanted else None)
        start += size
    return grads


@rule("Slice")
def slice_(g: Gradients, node: Node, dy: str) -> Grads:
    """Pad with zeros where the slice left something out (step 1 only)."""
    x, starts, ends, *rest = node.inputs
    shape = g.shape(x)
    begin, end = g.value(starts).ravel(), g.value(ends).ravel()
    axes = g.value(rest[0]).ravel() if rest and rest[0] else np.arange(len(begin))
    steps = g.value(rest[1]).ravel() if len(rest) > 1 and rest[1] else np.ones(len(begin), np.int64)
    if np.any(steps < 1):
        raise GraphError("Slice backwards", where=node.name)
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, b, e, step in zip(axes % len(shape), begin, end, steps, strict=True):
        if b == 0 and e >= _END and step == 1:
            continue
        size = known(shape[axis], "Slice along an axis of unknown size", node.name)
        first, last, _ = slice(int(b), int(e)).indices(size)
        if step > 1:
            count = len(range(first, last, int(step)))
            dy = _spread_out(g, dy, int(axis), count, int(step), g.shape(node.outputs[0]))
            last = first + (count - 1) * int(step) + 1
        before[axis], after[axis] = first, size - max(first, last)
    return [g.op("Pad", dy, g.ints(*before, *after))]


def _spread_out(g: Gradients, dy: str, axis: int, count: int, step: int, shape: Shape) -> str:
    """Zeros between the ``count`` places of an axis, so that they are ``step`` apart."""
    apart = g.op("Unsqueeze", dy, g.ints(axis + 1))
    padded = g.op("Pad", apart, g.ints(*[0] * (len(shape) + 1 + axis + 1), step - 1, *[0] * (len(shape) - axis - 1)))
    head = g.op("Slice", g.op("Shape", dy), g.ints(0), g.ints(axis), g.ints(0))
    tail = g.op("Slice", g.op("Shape", dy), g.ints(axis + 1), g.ints(_END), g.ints(0))
    joined = g.op("Reshape", padded, g.op("Concat", head, g.ints(count * step), tail, axis=0))
    return g.op("Slice", joined, g.ints(0), g.ints((count - 1) * step + 1), g.ints(axis))


@rule("ScatterND")
def scatter_nd(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = x`` with updates in the places of the indices: no gradient to what was replaced."""
    if node.attribute("reduction", b"none") not in (b"none", "none"):
        raise GraphError("ScatterND that adds or multiplies", where=node.name)
    x, indices, updates = node.inputs
    dx = None
    if g.needs(x):
        zeros = g.op("Expand", g.scalar(0.0), g.op("Shape", updates))
        dx = g.op("ScatterND", dy, indices, zeros)
    return [dx, None, g.op("GatherND", dy, indices) if g.needs(updates) else None]


@rule("GatherND")
def gather_nd(g: Gradients, node: Node, dy: str) -> Grads:
    """Add the gradient back where it was taken from."""
    if node.attribute("batch_dims", 0):
        raise GraphError("GatherND with batch dimensions", where=node.name)
    x, indices = node.inputs
    depth = known(g.shape(indices)[-1], "GatherND with indices of unknown length", node.name)
    shape = g.op("Shape", x)
    row = g.ints(0)
    for axis in range(depth):  # the row of x, if its first ``depth`` axes were one
        size = g.op("Slice", shape, g.ints(axis), g.ints(axis + 1))
        place = g.op("Reshape", g.op("Gather", indices, g.ints(axis), axis=-1), g.ints(-1))
        row = g.op("Add", g.op("Mul", row, size), g.op("Mod", place, size))  # Mod: a negative place counts from the end
    flat = g.op("Concat", g.ints(-1), g.op("Slice", shape, g.ints(depth), g.ints(_END)), axis=0)
    rows = g.op("Reshape", x, flat)
    return [g.op("Reshape", _add_rows(g, rows, len(g.shape(x)) - depth + 1, row, dy), shape)]


@rule("Pad")
def pad(g: Gradients, node: Node, dy: str) -> Grads:
    """Cut off what was padded with a constant."""
    x, pads, *rest = node.inputs
    amounts = g.value(pads).ravel()
    rank = len(g.shape(x))
    axes = g.value(rest[1]).ravel() % rank if len(rest) > 1 and rest[1] else np.arange(rank)
    if node.attribute("mode", b"constant") != b"constant" or (amounts < 0).any():
        raise GraphError("Pad that reflects, repeats or cuts", where=node.name)
    before, after = amounts[: len(axes)], amounts[len(axes) :]
    ends = [-int(a) if a else _END for a in after]
    return [g.op("Slice", dy, g.ints(*map(int, before)), g.ints(*ends), g.ints(*map(int, axes)))]


@rule("Gather")
def gather(g: Gradients, node: Node, dy: str) -> Grads:
    """Add the gradient back where it was taken from: for a constant list as a product with a one-hot matrix."""
    x, indices = node.inputs
    axis = int(node.attribute("axis", 0)) % len(g.shape(x))
    size = g.shape(x)[axis]
    index = g.forward.initializers.get(indices)
    if axis == 0 and (size is None or index is None or index.ndim > 1):
        return [_add_rows(g, x, len(g.shape(x)), indices, dy)]
    if size is None or index is None or index.ndim > 1:
        raise GraphError("Gather along a later axis of unknown size, or with computed indices", where=node.name)
    if index.ndim == 0:
        dy = g.op("Unsqueeze", dy, g.ints(axis))
    onehot = np.zeros((size, max(1, index.size)))
    onehot[index.ravel() % size, np.arange(index.size)] = 1
    rank = len(g.shape(x))
    last = [i for i in range(rank) if i != axis] + [axis]
    moved = g.op("MatMul", g.op("Transpose", dy, perm=last), g.floats(onehot.T))
    return [g.op("Transpose", moved, perm=[int(i) for i in np.argsort(last)])]


def _add_rows(g: Gradients, x: str, rank: int, indices: str, dy: str) -> str:
    """Zeros in the shape of x, and each row of dy added to the row that its index names.

    Not with ScatterND, whose threads overwrite each other's sums where an index occurs twice (onnxruntime 1.31, 1.32).
    """
    shape = g.op("Shape", x)
    rows = g.op("Reshape", dy, g.op("Concat", g.ints(-1), g.op("Slice", shape, g.ints(1), g.ints(_END)), axis=0))
    column = g.op("Reshape", indices, g.ints(-1, *[1] * (rank - 1)))
    spread = g.op("Expand", column, g.op("Shape", rows))
    return g.op("ScatterElements", g.op("Expand", g.scalar(0.0), shape), spread, rows, axis=0, reduction="add")


@rule("Expand")
def expand(g: Gradients, node: Node, dy: str) -> Grads:
    """Sum over the axes that were repeated."""
    return [unbroadcast(g, dy, node.outputs[0], node.inputs[0])]
