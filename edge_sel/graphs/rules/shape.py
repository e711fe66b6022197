"""Operators that only move numbers."""

from __future__ import annotations

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules.registry import Gradients, Grads, rule


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
        if size is None:
            raise GraphError("Slice along an axis of unknown size", where=node.name)
        first, last, _ = slice(int(b), int(e)).indices(size)
        before[axis], after[axis] = first, size - max(first, last)
    return [g.op("Pad", dy, g.ints(*before, *after)), *[None] * (len(node.inputs) - 1)]


@rule("Gather")
def gather(g: Gradients, node: Node, dy: str) -> Grads:
    """Add the gradient back at constant indices along one axis, as a product with a one-hot matrix."""
    x, indices = node.inputs
    axis = int(node.attribute("axis", 0)) % len(g.shape(x))
    size = g.shape(x)[axis]
    index = g.value(indices)
    if size is None or index.ndim > 1:
        raise GraphError("Gather along an axis of unknown size, or with a matrix of indices", where=node.name)
    if index.ndim == 0:
        dy = g.op("Unsqueeze", dy, g.ints(axis))
    onehot = np.zeros((size, max(1, index.size)))
    onehot[index.ravel() % size, np.arange(index.size)] = 1
    rank = len(g.shape(x))
    last = [i for i in range(rank) if i != axis] + [axis]
    moved = g.op("MatMul", g.op("Transpose", dy, perm=last), g.floats(onehot.T))
    return [g.op("Transpose", moved, perm=[int(i) for i in np.argsort(last)]), None]


@rule("Expand")
def expand(g: Gradients, node: Node, dy: str) -> Grads:
    """Sum over the axes that were repeated."""
    from edge_sel.graphs.rules.elementwise import unbroadcast

    return [unbroadcast(g, dy, node.outputs[0], node.inputs[0]), None]
