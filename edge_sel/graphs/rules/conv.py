"""Convolution: its geometry and its gradients. The emission is chosen by shape: what is fast on ONNX Runtime's CPU.

An input gradient is a convolution with the flipped kernel at stride 1, a ConvTranspose elsewhere: on one thread they
cost the same, but ConvTranspose hardly uses a second one. Weight gradients stand in ``conv_weight.py``.
"""

from __future__ import annotations

from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules import conv_places
from edge_sel.graphs.rules.conv_shape import ConvShape, conv_shape
from edge_sel.graphs.rules.conv_weight import weight_gradient
from edge_sel.graphs.rules.elementwise import sum_per_channel
from edge_sel.graphs.rules.registry import Gradients, Grads, rule

_BEGIN = -(2**31) + 1


@rule("Conv")
def conv(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = w * x + b``: dx by a transposed convolution, dw by one Gemm per kernel position, db by a sum."""
    c = conv_shape(g, node)
    x, w, *bias = node.inputs
    dx = _input_gradient(g, c, w, dy) if g.needs(x) else None
    dw = weight_gradient(g, c, x, w, dy) if g.needs(w) else None
    db = [sum_per_channel(g, dy, (None, c.channels_out, *c.size_out)) if g.needs(b) else None for b in bias]
    return [dx, dw, *db]


def _input_gradient(g: Gradients, c: ConvShape, w: str, dy: str) -> str:
    pads = c.flip_pads
    if c.tiny and c.stride == (1, 1) and g.needs(w):
        return conv_places.input_gradient(g, c, w, dy)
    if c.stride == (1, 1) and min(pads) >= 0:
        flipped = _swap_channels(g, c, _flip(g, c, w))
        return g.op("Conv", dy, flipped, pads=list(pads), dilations=list(c.dilation), group=c.group)
    extra = [
        c.size_in[i]
        - ((c.size_out[i] - 1) * c.stride[i] - c.begin[i] - c.end[i] + c.dilation[i] * (c.kernel[i] - 1) + 1)
        for i in (0, 1)
    ]
    return g.op(
        "ConvTranspose", dy, w, strides=list(c.stride), dilations=list(c.dilation), group=c.group,
        pads=[*c.begin, *c.end], output_padding=extra,
    )  # fmt: skip


def _flip(g: Gradients, c: ConvShape, w: str) -> str:
    """Turn each kernel by 180°."""
    if c.kernel == (1, 1):
        return w
    return g.op("Slice", w, g.ints(-1, -1), g.ints(_BEGIN, _BEGIN), g.ints(2, 3), g.ints(-1, -1))


def _swap_channels(g: Gradients, c: ConvShape, w: str) -> str:
    """[O, C/G, kh, kw] → [C, O/G, kh, kw], group by group."""
    if c.depthwise:
        return w
    if c.group == 1:
        return g.op("Transpose", w, perm=[1, 0, 2, 3])
    per_in, per_out = c.channels_in // c.group, c.channels_out // c.group
    grouped = g.op("Reshape", w, g.ints(c.group, per_out, per_in, *c.kernel))
    swapped = g.op("Transpose", grouped, perm=[0, 2, 1, 3, 4])
    return g.op("Reshape", swapped, g.ints(c.channels_in, per_out, *c.kernel))
