"""Operators that only move numbers."""

from __future__ import annotations

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules.elementwise import unbroadcast
from edge_sel.graphs.rules.registry import Gradients, Grads, rule

_END = 2**31 - 1


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(g: Gradients, node: Node, dy: str) -> Grads:
    """The gradient takes the input's shape again."""
    back = g.op("Reshape", dy, g.op("Shape", node.inputs[0]))
    return [back, *[None] * (len(node.inputs) - 1)]


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
        size = g.shape(name)[axis]
        if size is None:
            raise GraphError("Concat along an axis of unknown size", where=node.name)
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
    if len(rest) > 1 and np.any(g.value(rest[1]) != 1):
        raise GraphError("Slice with a step", where=node.name)
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, b, e in zip(axes % len(shape), begin, end, strict=True):
        size = shape[axis]
        if b == 0 and e >= _END:
            continue
        if size is None:
            raise GraphError("Slice along an axis of unknown size", where=node.name)
        first, last, _ = slice(int(b), int(e)).indices(size)
        before[axis], after[axis] = first, size - max(first, last)
    return [g.op("Pad", dy, g.ints(*before, *after)), *[None] * (len(node.inputs) - 1)]


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
    dx = g.op("Slice", dy, g.ints(*map(int, before)), g.ints(*ends), g.ints(*map(int, axes)))
    return [dx, *[None] * (len(node.inputs) - 1)]


@rule("Gather")
def gather(g: Gradients, node: Node, dy: str) -> Grads:
    """Add the gradient back where it was taken from: for a constant list as a product with a one-hot matrix."""
    x, indices = node.inputs
    axis = int(node.attribute("axis", 0)) % len(g.shape(x))
    size = g.shape(x)[axis]
    index = g.constants.get(indices)
    if axis == 0 and (size is None or index is None or index.ndim > 1):
        return [_add_rows(g, x, indices, dy), None]
    if size is None or index is None or index.ndim > 1:
        raise GraphError("Gather along a later axis of unknown size, or with computed indices", where=node.name)
    if index.ndim == 0:
        dy = g.op("Unsqueeze", dy, g.ints(axis))
    onehot = np.zeros((size, max(1, index.size)))
    onehot[index.ravel() % size, np.arange(index.size)] = 1
    rank = len(g.shape(x))
    last = [i for i in range(rank) if i != axis] + [axis]
    moved = g.op("MatMul", g.op("Transpose", dy, perm=last), g.floats(onehot.T))
    return [g.op("Transpose", moved, perm=[int(i) for i in np.argsort(last)]), None]


def _add_rows(g: Gradients, x: str, indices: str, dy: str) -> str:
    """Zeros in the shape of x, and each row of dy added to the row that its index names."""
    shape = g.op("Shape", x)
    rows = g.op("Reshape", dy, g.op("Concat", g.ints(-1), g.op("Slice", shape, g.ints(1), g.ints(_END)), axis=0))
    column = g.op("Reshape", indices, g.ints(-1, *[1] * (len(g.shape(x)) - 1)))
    spread = g.op("Expand", column, g.op("Shape", rows))
    return g.op("ScatterElements", g.op("Expand", g.scalar(0.0), shape), spread, rows, axis=0, reduction="add")


@rule("Expand")
def expand(g: Gradients, node: Node, dy: str) -> Grads:
    """Sum over the axes that were repeated."""
    return [unbroadcast(g, dy, node.outputs[0], node.inputs[0]), None]
