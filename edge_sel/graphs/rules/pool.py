"""Pooling and means."""

from __future__ import annotations

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules.registry import Gradients, Grads, forward_form, rule

_SMALLEST = 1e-30
"""A norm that is less is that of zeros."""


def _spread(g: Gradients, dy: str, x: str, count: int) -> str:
    return g.op("Expand", g.op("Mul", dy, g.scalar(1 / count)), g.op("Shape", x))


@rule("ReduceMean")
def reduce_mean(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx = dy/n``, spread over the axes that were averaged."""
    x = node.inputs[0]
    shape = g.shape(x)
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = [int(a) % len(shape) for a in g.value(node.inputs[1])]
    else:
        axes = [int(a) % len(shape) for a in node.attribute("axes", range(len(shape)))]
    sizes = [shape[a] for a in axes]
    if None in sizes:
        raise GraphError("ReduceMean over an axis of unknown size", where=node.name)
    if not node.attribute("keepdims", 1):
        dy = g.op("Unsqueeze", dy, g.ints(*sorted(axes)))
    return [_spread(g, dy, x, int(np.prod([s for s in sizes if s]))), *[None] * (len(node.inputs) - 1)]


@rule("ReduceSum")
def reduce_sum(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx = dy``, spread over the axes that were added up."""
    x = node.inputs[0]
    rank = len(g.shape(x))
    given = len(node.inputs) > 1 and node.inputs[1]
    axes = sorted(int(a) % rank for a in (g.value(node.inputs[1]).ravel() if given else range(rank)))
    if not node.attribute("keepdims", 1):
        dy = g.op("Unsqueeze", dy, g.ints(*axes))
    return [g.op("Expand", dy, g.op("Shape", x)), *[None] * (len(node.inputs) - 1)]


@rule("ReduceL2")
def reduce_l2(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = √Σx²``; ``dx = dy·x/y``, 0 where all of x is."""
    x, y = node.inputs[0], node.outputs[0]
    rank = len(g.shape(x))
    given = len(node.inputs) > 1 and node.inputs[1]
    axes = sorted(int(a) % rank for a in (g.value(node.inputs[1]).ravel() if given else range(rank)))
    if not node.attribute("keepdims", 1):
        dy, y = (g.op("Unsqueeze", tensor, g.ints(*axes)) for tensor in (dy, y))
    share = g.op("Div", dy, g.op("Max", y, g.scalar(_SMALLEST)))
    return [g.op("Mul", x, share), *[None] * (len(node.inputs) - 1)]


@rule("GlobalAveragePool")
def global_average_pool(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx = dy/(H·W)`` at every pixel."""
    sizes = g.shape(node.inputs[0])[2:]
    if None in sizes:
        raise GraphError("GlobalAveragePool over a map of unknown size", where=node.name)
    return [_spread(g, dy, node.inputs[0], int(np.prod([s for s in sizes if s])))]


@rule("AveragePool")
def average_pool(g: Gradients, node: Node, dy: str) -> Grads:
    """A depthwise transposed convolution of dy, divided by the number of pixels that each window had, with ones."""
    shape, out = g.shape(node.inputs[0]), g.shape(node.outputs[0])
    if len(shape) != 4 or None in (*shape[1:], *out[2:]):
        raise GraphError("AveragePool over a map of unknown size", where=node.name)
    channels, *sizes = (size or 0 for size in shape[1:])
    kernel, strides = list(node.attributes["kernel_shape"]), list(node.attribute("strides", [1, 1]))
    pads = list(node.attribute("pads", [0, 0, 0, 0]))
    counts, rest = [], []
    for i in (0, 1):
        starts = np.arange(out[2 + i] or 0) * strides[i]
        first, last = pads[i], pads[i] + sizes[i]
        rest.append(last - int(starts[-1]) - kernel[i])
        if node.attribute("count_include_pad", 0):
            if -rest[i] > pads[2 + i]:
                raise GraphError("AveragePool that rounds up and counts its padding", where=node.name)
            first, last = 0, last + pads[2 + i]
        counts.append(np.minimum(starts + kernel[i], last) - np.maximum(starts, first))
    if any(size >= stride for size, stride in zip(rest, strides, strict=True)):
        raise GraphError("AveragePool that ignores whole windows of its input", where=node.name)
    shares = 1 / np.outer(*counts)
    if (shares == shares[0, 0]).all():
        weight = np.full((channels, 1, *kernel), shares[0, 0])
    else:
        weight, dy = np.ones((channels, 1, *kernel)), g.op("Mul", dy, g.floats(shares[None, None]))
    # What the last window has beyond the image is cut off; what no window reached gets zeros.
    ends, more = [max(0, -size) for size in rest], [max(0, size) for size in rest]
    around = [*pads[:2], *ends]
    return [g.op("ConvTranspose", dy, g.floats(weight), strides=strides, pads=around, output_padding=more,
                 group=channels)]  # fmt: skip


@forward_form("MaxPool")
def max_pool_with_indices(g: Gradients, node: Node) -> bool:
    """Ask for the positions of the maxima too: the gradient goes there."""
    (indices,) = g.builder.multi("MaxPool", node.inputs[0], names=[node.outputs[0], None], **node.attributes)[1:]
    g.saved(node.outputs[0])["indices"] = indices
    return True


@rule("MaxPool")
def max_pool(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx`` is ``dy`` at each window's maximum, added up where windows overlap."""
    x = node.inputs[0]
    shape = g.op("Shape", x)
    zeros = g.op("Expand", g.scalar(0.0), g.op("Unsqueeze", g.op("Size", x), g.ints(0)))
    flat_indices = g.op("Reshape", g.saved(node.outputs[0])["indices"], g.ints(-1))
    flat = g.op("ScatterElements", zeros, flat_indices, g.op("Reshape", dy, g.ints(-1)), axis=0, reduction="add")
    return [g.op("Reshape", flat, shape)]
