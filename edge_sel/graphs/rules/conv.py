"""Convolution. The emission is chosen by shape: what is fast on ONNX Runtime's CPU kernels, measured.

A weight gradient is one Gemm per kernel position over a shifted view of the map (1.2 to 1.8 times faster than im2col
with one large Gemm, which copies the map once more; 2 to 5 times faster than a convolution over the batch); im2col
remains for maps of few channels, such as images. An input gradient is a convolution with the flipped kernel at stride
1 on maps above 8×8, a ConvTranspose elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules.registry import Gradients, Grads, rule

FLIP_MIN_MAP = 9
"""Smallest input height for which the flipped convolution beats ConvTranspose at stride 1."""

FEW_CHANNELS = 8
"""Below this many input channels the products per kernel position are too narrow to be fast."""

_BEGIN = -(2**31) + 1


@dataclass(frozen=True)
class ConvShape:
    """Static geometry of one 2-D convolution; pairs are (height, width)."""

    channels_in: int
    channels_out: int
    group: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    begin: tuple[int, int]
    end: tuple[int, int]
    size_in: tuple[int, int]
    size_out: tuple[int, int]

    @property
    def pointwise(self) -> bool:
        """1×1, unpadded: a matrix product per pixel."""
        return self.kernel == (1, 1) and self.begin == self.end == (0, 0)

    @property
    def flip_pads(self) -> tuple[int, int, int, int]:
        """Padding that makes a convolution of the output gradient cover the input (stride 1)."""
        span = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        return (
            span[0] - self.begin[0],
            span[1] - self.begin[1],
            span[0] - self.end[0],
            span[1] - self.end[1],
        )


def conv_shape(g: Gradients, node: Node) -> ConvShape:
    """Read the geometry; GraphError for forms that have no rule."""
    x, w, y = (_known(g, name) for name in (*node.inputs[:2], node.outputs[0]))
    if len(x) != 4 or not all((*x[1:], *y[1:])):
        raise GraphError("Conv needs a 2-D map of known size", where=node.name, fix="export at a fixed image size")
    if node.attribute("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        raise GraphError("Conv with auto_pad", where=node.name, fix="export with explicit pads")
    pads = tuple(node.attribute("pads", (0, 0, 0, 0)))
    return ConvShape(
        channels_in=x[1],
        channels_out=w[0],
        group=node.attribute("group", 1),
        kernel=(w[2], w[3]),
        stride=tuple(node.attribute("strides", (1, 1))),
        dilation=tuple(node.attribute("dilations", (1, 1))),
        begin=pads[:2],
        end=pads[2:],
        size_in=(x[2], x[3]),
        size_out=(y[2], y[3]),
    )


def _known(g: Gradients, name: str) -> list[int]:
    """Static shape with 0 for what is only known at run time."""
    return [size or 0 for size in g.shape(name)]


@rule("Conv")
def conv(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = w * x + b``: dx by a transposed convolution, dw by im2col and one Gemm, db by a sum."""
    c = conv_shape(g, node)
    x, w, *bias = node.inputs
    dx = _input_gradient(g, c, w, dy) if g.needs(x) else None
    dw = _weight_gradient(g, c, x, w, dy) if g.needs(w) else None
    db = [g.op("ReduceSum", dy, g.ints(0, 2, 3), keepdims=0) if g.needs(b) else None for b in bias]
    return [dx, dw, *db]


def _input_gradient(g: Gradients, c: ConvShape, w: str, dy: str) -> str:
    pads = c.flip_pads
    if c.stride == (1, 1) and min(pads) >= 0 and (c.group > 1 or c.size_in[0] >= FLIP_MIN_MAP):
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
    if c.group == c.channels_in == c.channels_out:
        return w
    if c.group == 1:
        return g.op("Transpose", w, perm=[1, 0, 2, 3])
    per_in, per_out = c.channels_in // c.group, c.channels_out // c.group
    grouped = g.op("Reshape", w, g.ints(c.group, per_out, per_in, *c.kernel))
    swapped = g.op("Transpose", grouped, perm=[0, 2, 1, 3, 4])
    return g.op("Reshape", swapped, g.ints(c.channels_in, per_out, *c.kernel))


def _weight_gradient(g: Gradients, c: ConvShape, x: str, w: str, dy: str) -> str:
    rows = c.channels_out
    guilty = g.channels(w)
    if guilty is not None:
        index, rows = guilty
        dy = g.op("Gather", dy, index, axis=1)
        if c.group > 1:
            x = _inputs_of_channels(g, c, x, index)
    if c.group > 1:
        return _grouped(g, c, x, dy, rows)
    if c.pointwise:
        product = g.op("Gemm", _flat(g, dy, rows), _columns_pointwise(g, c, x), transB=1)
        return g.op("Reshape", product, g.ints(rows, c.channels_in, 1, 1))
    if c.channels_in < FEW_CHANNELS:
        return _from_columns(g, c, x, dy, rows)
    if c.stride == c.dilation == (1, 1) and rows < c.channels_in and min(c.flip_pads) >= 0:
        return _per_position(g, c, _gradient_windows(g, c, dy, rows), [_flat(g, x, c.channels_in)], rows)
    windows = [g.op("Reshape", v, g.ints(c.channels_in, -1)) for v in _windows(g, c, _padded_swap(g, c, x))]
    return _per_position(g, c, [_flat(g, dy, rows)], windows, rows)


def _per_position(g: Gradients, c: ConvShape, left: list[str], right: list[str], rows: int) -> str:
    """One product [rows, C_in] per kernel position; one of the two sides is shifted, the other is always the same."""
    count = c.kernel[0] * c.kernel[1]
    pairs = zip(left * (count // len(left)), right * (count // len(right)), strict=True)
    products = g.op("Concat", *(g.op("Gemm", a, b, transB=1) for a, b in pairs), axis=0)
    shaped = g.op("Reshape", products, g.ints(*c.kernel, rows, c.channels_in))
    return g.op("Transpose", shaped, perm=[2, 3, 0, 1])


def _from_columns(g: Gradients, c: ConvShape, x: str, dy: str, rows: int) -> str:
    """im2col, then one product [kh·kw·C_in, rows]; this way round it is the faster one."""
    windows = g.op("Concat", *_windows(g, c, _padded_swap(g, c, x)), axis=0)
    columns = g.op("Reshape", windows, g.ints(c.kernel[0] * c.kernel[1] * c.channels_in, -1))
    product = g.op("Gemm", columns, _flat(g, dy, rows), transB=1)
    shaped = g.op("Reshape", product, g.ints(*c.kernel, c.channels_in, rows))
    return g.op("Transpose", shaped, perm=[3, 2, 0, 1])


def _flat(g: Gradients, tensor: str, channels: int) -> str:
    """[N, C, H, W] → [C, N·H·W]."""
    swapped = g.cached(("swap", tensor), lambda: g.op("Transpose", tensor, perm=[1, 0, 2, 3]))
    return g.op("Reshape", swapped, g.ints(channels, -1))


def _windows(g: Gradients, c: ConvShape, padded: str) -> list[str]:
    """For each kernel position the input pixels that it touched: [·, ·, H_out, W_out] each."""
    return [
        g.op(
            "Slice",
            padded,
            g.ints(i * c.dilation[0], j * c.dilation[1]),
            g.ints(
                i * c.dilation[0] + (c.size_out[0] - 1) * c.stride[0] + 1,
                j * c.dilation[1] + (c.size_out[1] - 1) * c.stride[1] + 1,
            ),
            g.ints(2, 3),
            g.ints(*c.stride),
        )
        for i in range(c.kernel[0])
        for j in range(c.kernel[1])
    ]


def _pad(g: Gradients, tensor: str, begin: tuple[int, int], end: tuple[int, int]) -> str:
    return tensor if begin == end == (0, 0) else g.op("Pad", tensor, g.ints(0, 0, *begin, 0, 0, *end))


def _columns_pointwise(g: Gradients, c: ConvShape, x: str) -> str:
    if c.stride != (1, 1):
        (x,) = _windows(g, c, x)
    return _flat(g, x, c.channels_in)


def _padded_swap(g: Gradients, c: ConvShape, x: str) -> str:
    """[N, C, H, W] → [C, N, H, W], padded as the convolution pads."""
    return _pad(g, g.cached(("swap", x), lambda: g.op("Transpose", x, perm=[1, 0, 2, 3])), c.begin, c.end)


def _gradient_windows(g: Gradients, c: ConvShape, dy: str, rows: int) -> list[str]:
    """The gradient shifted instead of the input, [rows, N·H·W] each: cheaper when fewer outputs than inputs count."""
    (kh, kw), (height, width) = c.kernel, c.size_in
    top, left, bottom, right = c.flip_pads
    padded = _pad(g, g.op("Transpose", dy, perm=[1, 0, 2, 3]), (top, left), (bottom, right))
    return [
        g.op(
            "Reshape",
            g.op("Slice", padded, g.ints(i, j), g.ints(i + height, j + width), g.ints(2, 3)),
            g.ints(rows, -1),
        )
        for i in range(kh - 1, -1, -1)
        for j in range(kw - 1, -1, -1)
    ]


def _inputs_of_channels(g: Gradients, c: ConvShape, x: str, index: str) -> str:
    if c.group != c.channels_in or c.group != c.channels_out:
        raise GraphError("guilty channels of a grouped convolution", fix="only depthwise and plain ones have a rule")
    return g.op("Gather", x, index, axis=1)


def _grouped(g: Gradients, c: ConvShape, x: str, dy: str, rows: int) -> str:
    """One product per group; for depthwise kernels a product and a sum per kernel position."""
    kh, kw = c.kernel
    padded = _pad(g, x, c.begin, c.end)
    if c.group == c.channels_in == c.channels_out:
        sums = [
            g.op("ReduceSum", g.op("Mul", dy, window), g.ints(0, 2, 3), keepdims=1) for window in _windows(g, c, padded)
        ]
        return g.op("Reshape", g.op("Concat", *sums, axis=2), g.ints(rows, 1, kh, kw))
    per_in, per_out = c.channels_in // c.group, c.channels_out // c.group
    columns = g.op(
        "Concat",
        *(
            g.op("Reshape", g.op("Transpose", w, perm=[1, 0, 2, 3]), g.ints(c.group, per_in, 1, -1))
            for w in _windows(g, c, padded)
        ),
        axis=2,
    )
    columns = g.op("Reshape", columns, g.ints(c.group, per_in * kh * kw, -1))
    gradient = g.op("Reshape", g.op("Transpose", dy, perm=[1, 0, 2, 3]), g.ints(c.group, per_out, -1))
    product = g.op("MatMul", gradient, g.op("Transpose", columns, perm=[0, 2, 1]))
    return g.op("Reshape", product, g.ints(c.channels_out, per_in, kh, kw))
