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
    """A depthwise transposed convolution with a constant kernel 1/(kh·kw)."""
    shape, out = g.shape(node.inputs[0]), g.shape(node.outputs[0])
    kernel = list(node.attributes["kernel_shape"])
    strides = list(node.attribute("strides", [1, 1]))
    pads = list(node.attribute("pads", [0, 0, 0, 0]))
    if (any(pads) and not node.attribute("count_include_pad", 0)) or node.attribute("ceil_mode", 0):
        raise GraphError("AveragePool that leaves its padding out of the mean, or rounds up", where=node.name)
    channels, height, width = shape[1], shape[2], shape[3]
    if channels is None or height is None or width is None or out[2] is None or out[3] is None:
        raise GraphError("AveragePool over a map of unknown size", where=node.name)
    weight = g.floats(np.full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1])))
    rest = [
        size - ((o - 1) * s - b - e + k)
        for size, o, s, k, b, e in zip(
            (height, width), (out[2], out[3]), strides, kernel, pads[:2], pads[2:], strict=True
        )
    ]
    if any(r >= s for r, s in zip(rest, strides, strict=True)):
        raise GraphError("AveragePool that ignores whole windows of its input", where=node.name)
    return [g.op("ConvTranspose", dy, weight, strides=strides, pads=pads, output_padding=rest, group=channels)]


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
