"""Normalisations, pooling and sums: operators that reduce axes.

``BatchNormalization`` itself is used as a fused ``a·x + b`` per channel: one pass over the map where Mul and Add
would take two.
"""

from __future__ import annotations

from math import prod

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules.elementwise import sum_per_channel
from edge_sel.graphs.rules.registry import Gradients, Grads, forward_form, known, rule

_SMALLEST = 1e-30
"""A norm that is less is that of zeros."""


def _per_channel(g: Gradients, x: str, channels: int, *, scale: str | None = None, shift: str | None = None) -> str:
    """``scale·(x) − scale·shift`` for each channel of [N, C, …] in one fused pass; both default to neutral."""
    one, zero = g.floats(np.ones(channels)), g.floats(np.zeros(channels))
    return g.op("BatchNormalization", x, scale or one, zero, shift or zero, one, epsilon=0.0)


@forward_form("BatchNormalization")
def batch_statistics(g: Gradients, node: Node) -> bool:
    """Normalise with the batch's own mean and population variance, and keep them for the gradient.

    One operator does that in a third of the time that means, products and a second normalisation take.
    Running statistics become ``new::`` outputs: ``r ← (1 − m)·r + m·s`` with the run-time momentum m; the variance is
    made unbiased by n/(n − 1), as torch does.
    """
    if g.bn_mode != "batch":
        return False
    x, scale, bias, mean, variance = node.inputs
    # onnxruntime writes the batch's statistics over these inputs, even over constants: tensors that nobody else reads.
    old = [g.op("Mul", running, g.scalar(0.0)) for running in (mean, variance)]
    names = [node.outputs[0], None, None]
    attributes = {"epsilon": node.attribute("epsilon", 1e-5), "training_mode": 1, "momentum": 0.0}
    _, mu, var = g.multi("BatchNormalization", x, scale, bias, *old, names=names, **attributes)
    count = g.op("Cast", g.op("Div", g.op("Size", x), g.op("Size", mean)), to=1)
    unbiased = g.op("Mul", var, g.op("Div", count, g.op("Sub", count, g.scalar(1.0))))
    keep = g.op("Sub", g.scalar(1.0), "bn_momentum")
    for running, fresh in ((mean, mu), (variance, unbiased)):
        kept, added = g.op("Mul", running, keep), g.op("Mul", fresh, "bn_momentum")
        g.op("Add", kept, added, name=f"new::{running}")
    g.saved(node.outputs[0]).update(mean=mu, variance=var, count=count)
    return True


@rule("BatchNormalization")
def batch_norm(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = γ·(x − μ)/σ + β`` (Ioffe & Szegedy 2015).

    ``dβ = Σdy``, ``dγ = Σ dy·(x − μ)/σ``; frozen: ``dx = dy·γ/σ``; with batch statistics
    ``dx = γ/σ·(dy − dβ/n − (x − μ)·dγ/(n·σ))``.
    """
    x, scale, bias, mean, variance = node.inputs
    shape = g.shape(x)
    channels = known(shape[1], "BatchNormalization over an unknown number of channels", node.name)
    saved = g.saved(node.outputs[0])
    batch = bool(saved)
    var = saved["variance"] if batch else variance
    epsilon = g.scalar(float(node.attribute("epsilon", 1e-5)))
    inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", var, epsilon)))
    gain = g.op("Mul", scale, inverse)
    dx = dscale = dbias = centred = None
    if g.needs(bias) or (batch and g.needs(x)):
        dbias = sum_per_channel(g, dy, shape)
    if g.needs(scale) or (batch and g.needs(x)):
        # Running statistics are known from the start: the map would be centred at once, and kept twice.
        centre = saved["mean"] if batch else g.not_before(mean, dy)
        centred = _per_channel(g, x, channels, shift=centre)
        dscale = g.op("Mul", sum_per_channel(g, g.op("Mul", dy, centred), shape), inverse)
    if g.needs(x) and not batch:
        dx = _per_channel(g, dy, channels, scale=gain)
    elif g.needs(x):
        assert dbias is not None and dscale is not None and centred is not None
        from_mean = _per_channel(g, dy, channels, scale=gain, shift=g.op("Div", dbias, saved["count"]))
        slope = g.op("Div", g.op("Mul", g.op("Mul", gain, inverse), dscale), saved["count"])
        from_variance = _per_channel(g, centred, channels, scale=slope)
        dx = g.op("Sub", from_mean, from_variance)
    return [dx, dscale if g.needs(scale) else None, dbias if g.needs(bias) else None]


@rule("LayerNormalization", "InstanceNormalization")
def layer_norm(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = γ·x̂ + β`` with x̂ = (x − μ)/σ over the last axes, or over each channel's map.

    ``dx = (d − mean(d) − x̂·mean(d·x̂))/σ`` for the gradient d = γ·dy of x̂. Group normalisation is built from instance
    normalisation.
    """
    x, scale, *bias = node.inputs
    rank = len(g.shape(x))
    maps = node.op == "InstanceNormalization"
    first = 2 if maps else int(node.attribute("axis", -1)) % rank
    inner, outer = g.ints(*range(first, rank)), g.ints(*((0, *range(2, rank)) if maps else range(first)))
    centred = g.op("Sub", x, g.op("ReduceMean", x, inner, keepdims=1))
    variance = g.op("ReduceMean", g.op("Mul", centred, centred), inner, keepdims=1)
    epsilon = g.scalar(float(node.attribute("epsilon", 1e-5)))
    inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, epsilon)))
    normal = g.op("Mul", centred, inverse)
    dx = None
    if g.needs(x):
        d = g.op("Mul", dy, g.op("Reshape", scale, g.ints(-1, *[1] * (rank - 2))) if maps else scale)
        along = g.op("Mul", normal, g.op("ReduceMean", g.op("Mul", d, normal), inner, keepdims=1))
        dx = g.op("Mul", g.op("Sub", g.op("Sub", d, g.op("ReduceMean", d, inner, keepdims=1)), along), inverse)
    dscale = g.op("ReduceSum", g.op("Mul", dy, normal), outer, keepdims=0) if g.needs(scale) else None
    dbias = [g.op("ReduceSum", dy, outer, keepdims=0) if g.needs(b) else None for b in bias]
    return [dx, dscale, *dbias]


def _spread(g: Gradients, dy: str, x: str, count: int) -> str:
    """``dy/count`` in the shape of x."""
    return g.op("Expand", g.op("Mul", dy, g.scalar(1 / count)), g.op("Shape", x))


def _reduced_axes(g: Gradients, node: Node) -> list[int]:
    rank = len(g.shape(node.inputs[0]))
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = g.value(node.inputs[1]).ravel()
    else:
        axes = node.attribute("axes", range(rank))
    return sorted(int(axis) % rank for axis in axes)


def _with_axes(g: Gradients, node: Node, tensor: str, axes: list[int]) -> str:
    """A tensor in the shape of the output, with one element along each axis that was reduced."""
    return tensor if node.attribute("keepdims", 1) else g.op("Unsqueeze", tensor, g.ints(*axes))


@rule("ReduceMean")
def reduce_mean(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx = dy/n``, spread over the axes that were averaged."""
    x, axes = node.inputs[0], _reduced_axes(g, node)
    count = prod(known(g.shape(x)[axis], "ReduceMean over an axis of unknown size", node.name) for axis in axes)
    return [_spread(g, _with_axes(g, node, dy, axes), x, count)]


@rule("ReduceSum")
def reduce_sum(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx = dy``, spread over the axes that were added up."""
    back = _with_axes(g, node, dy, _reduced_axes(g, node))
    return [g.op("Expand", back, g.op("Shape", node.inputs[0]))]


@rule("ReduceL2")
def reduce_l2(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = √Σx²``; ``dx = dy·x/y``, 0 where all of x is."""
    x, axes = node.inputs[0], _reduced_axes(g, node)
    dy, y = (_with_axes(g, node, tensor, axes) for tensor in (dy, node.outputs[0]))
    share = g.op("Div", dy, g.op("Max", y, g.scalar(_SMALLEST)))
    return [g.op("Mul", x, share)]


@rule("GlobalAveragePool")
def global_average_pool(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx = dy/(H·W)`` at every pixel."""
    sizes = g.shape(node.inputs[0])[2:]
    count = prod(known(size, "GlobalAveragePool over a map of unknown size", node.name) for size in sizes)
    return [_spread(g, dy, node.inputs[0], count)]


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
    (indices,) = g.multi("MaxPool", node.inputs[0], names=[node.outputs[0], None], **node.attributes)[1:]
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
