"""Batch and layer normalisation.

``BatchNormalization`` itself is used as a fused ``a·x + b`` per channel: one pass over the map where Mul and Add
would take two.
"""

from __future__ import annotations

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules.elementwise import sum_per_channel
from edge_sel.graphs.rules.registry import Gradients, Grads, forward_form, rule


def per_channel(g: Gradients, x: str, channels: int, *, scale: str | None = None, shift: str | None = None) -> str:
    """``scale·(x) − scale·shift`` for each channel of [N, C, …] in one fused pass; both default to neutral."""
    one, zero = g.floats(np.ones(channels)), g.floats(np.zeros(channels))
    return g.op("BatchNormalization", x, scale or one, zero, shift or zero, one, epsilon=0.0)


def _channels(g: Gradients, node: Node) -> int:
    channels = g.shape(node.inputs[0])[1]
    if channels is None:
        raise GraphError("BatchNormalization over an unknown number of channels", where=node.name)
    return channels


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
    _, mu, var = g.builder.multi("BatchNormalization", x, scale, bias, *old, names=names, **attributes)
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
    channels, shape = _channels(g, node), g.shape(x)
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
        centre = saved["mean"] if batch else g.builder.not_before(mean, dy)
        centred = per_channel(g, x, channels, shift=centre)
        dscale = g.op("Mul", sum_per_channel(g, g.op("Mul", dy, centred), shape), inverse)
    if g.needs(x) and not batch:
        dx = per_channel(g, dy, channels, scale=gain)
    elif g.needs(x):
        assert dbias is not None and dscale is not None and centred is not None
        from_mean = per_channel(g, dy, channels, scale=gain, shift=g.op("Div", dbias, saved["count"]))
        slope = g.op("Div", g.op("Mul", g.op("Mul", gain, inverse), dscale), saved["count"])
        from_variance = per_channel(g, centred, channels, scale=slope)
        dx = g.op("Sub", from_mean, from_variance)
    return [dx, dscale if g.needs(scale) else None, dbias if g.needs(bias) else None, None, None]


@rule("LayerNormalization")
def layer_norm(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = γ·x̂ + β`` with x̂ = (x − μ)/σ over the last axes."""
    x, scale, *bias = node.inputs
    rank = len(g.shape(x))
    first = int(node.attribute("axis", -1)) % rank
    inner, outer = g.ints(*range(first, rank)), g.ints(*range(first))
    normal, inverse = _normalised(g, x, inner, float(node.attribute("epsilon", 1e-5)))
    dx = _through_statistics(g, g.op("Mul", dy, scale), normal, inverse, inner) if g.needs(x) else None
    dscale = g.op("ReduceSum", g.op("Mul", dy, normal), outer, keepdims=0) if g.needs(scale) else None
    dbias = [g.op("ReduceSum", dy, outer, keepdims=0) if g.needs(b) else None for b in bias]
    return [dx, dscale, *dbias]


@rule("InstanceNormalization")
def instance_norm(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = γ·x̂ + β`` with x̂ = (x − μ)/σ over each channel's map (group norm is built from it)."""
    x, scale, bias = node.inputs
    rank = len(g.shape(x))
    inner, outer = g.ints(*range(2, rank)), g.ints(0, *range(2, rank))
    normal, inverse = _normalised(g, x, inner, float(node.attribute("epsilon", 1e-5)))
    dx = None
    if g.needs(x):
        per_map = g.op("Reshape", scale, g.ints(-1, *[1] * (rank - 2)))
        dx = _through_statistics(g, g.op("Mul", dy, per_map), normal, inverse, inner)
    dscale = g.op("ReduceSum", g.op("Mul", dy, normal), outer, keepdims=0) if g.needs(scale) else None
    dbias = g.op("ReduceSum", dy, outer, keepdims=0) if g.needs(bias) else None
    return [dx, dscale, dbias]


def _normalised(g: Gradients, x: str, axes: str, epsilon: float) -> tuple[str, str]:
    """x̂ = (x − μ)/σ over the axes, and 1/σ."""
    centred = g.op("Sub", x, g.op("ReduceMean", x, axes, keepdims=1))
    variance = g.op("ReduceMean", g.op("Mul", centred, centred), axes, keepdims=1)
    inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, g.scalar(epsilon))))
    return g.op("Mul", centred, inverse), inverse


def _through_statistics(g: Gradients, d: str, normal: str, inverse: str, axes: str) -> str:
    """``dx = (d − mean(d) − x̂·mean(d·x̂))/σ`` for the gradient d of x̂."""
    along = g.op("Mul", normal, g.op("ReduceMean", g.op("Mul", d, normal), axes, keepdims=1))
    return g.op("Mul", g.op("Sub", g.op("Sub", d, g.op("ReduceMean", d, axes, keepdims=1)), along), inverse)
