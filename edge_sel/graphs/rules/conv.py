"""Convolution: its gradients. What is emitted is chosen by shape: what is fast on ONNX Runtime's CPU.

Input gradients: a convolution with the flipped kernel at stride 1, a ConvTranspose elsewhere. On one thread they cost
the same, but ConvTranspose hardly uses a second one.

Weight gradients: one Gemm per kernel position over a shifted view of the map. That is 1.2 to 1.8 times faster than
im2col with one large Gemm, which copies the map once more, and 2 to 5 times faster than a convolution over the batch.
On small maps and at strides the batch is laid last, so that a shifted view is copied in long runs (15 to 30 % faster).
im2col remains for maps of few channels, such as images.

Maps of few pixels: one product per kernel position with the pixels of the whole batch, in the forward pass and for both
gradients. ONNX Runtime computes a convolution image by image. Where an image has nine pixels, a product over the whole
batch is 1.5 times faster, and it needs no flipped copy of the weights. A position is multiplied only with pixels that
are not padding: 49 of 81 for a 3×3 kernel on 3×3 pixels. This saves another 30 % compared with a product with columns
(im2col: Chellapilla et al. 2006), and the memory of the columns.
"""

from __future__ import annotations

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import DepthwiseGradient, Node, Pair
from edge_sel.graphs.rules.conv_shape import (
    AS_IT_IS,
    BATCH_LAST,
    BATCH_SECOND,
    ConvShape,
    Layout,
    channels_first,
    conv_shape,
    flat,
    pad_map,
    windows,
)
from edge_sel.graphs.rules.elementwise import sum_per_channel
from edge_sel.graphs.rules.registry import Gradients, Grads, forward_form, rule

_BEGIN = -(2**31) + 1
"""Of an axis, as the end of a Slice backwards."""

FEW_CHANNELS = 8
"""Below this many input channels the products per kernel position are too narrow to be fast."""

SMALL_MAP = 16
"""Up to this height the batch is laid last."""


@rule("Conv")
def conv(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = w * x + b``: dx by a transposed convolution, dw by one Gemm per kernel position, db by a sum."""
    c = conv_shape(g, node)
    x, w, *bias = node.inputs
    dx = _input_gradient(g, c, w, dy) if g.needs(x) else None
    dw = _weight_gradient(g, c, x, w, dy) if g.needs(w) else None
    db = [sum_per_channel(g, dy, (None, c.channels_out, *c.size_out)) if g.needs(b) else None for b in bias]
    return [dx, dw, *db]


def _input_gradient(g: Gradients, c: ConvShape, w: str, dy: str) -> str:
    if c.tiny and c.stride == (1, 1) and g.needs(w):
        return _input_gradient_by_position(g, c, w, dy)
    if c.stride == (1, 1) and min(c.flip_pads) >= 0:
        if c.kernel != (1, 1):
            w = g.op("Slice", w, g.ints(-1, -1), g.ints(_BEGIN, _BEGIN), g.ints(2, 3), g.ints(-1, -1))
        w = _swap_channels(g, c, w)
        return g.op("Conv", dy, w, pads=list(c.flip_pads), dilations=list(c.dilation), group=c.group)
    extra = [
        c.size_in[i]
        - ((c.size_out[i] - 1) * c.stride[i] - c.begin[i] - c.end[i] + c.dilation[i] * (c.kernel[i] - 1) + 1)
        for i in (0, 1)
    ]
    return g.op(
        "ConvTranspose", dy, w, strides=list(c.stride), dilations=list(c.dilation), group=c.group,
        pads=[*c.begin, *c.end], output_padding=extra,
    )  # fmt: skip


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


def _weight_gradient(g: Gradients, c: ConvShape, x: str, w: str, dy: str) -> str:
    """``dw[o, c, i, j] = Σ dy[n, o, h, w]·x[n, c, h·s + i − p, w·s + j − p]``, of the guilty output channels only."""
    rows = c.channels_out
    guilty = g.channels(w)
    if guilty is not None:
        index, rows = guilty
        dy = g.op("Gather", dy, index, axis=1)
        if c.group > 1 and not c.depthwise:
            raise GraphError(
                "guilty channels of a grouped convolution", fix="only depthwise and plain ones have a rule"
            )
        if c.depthwise:
            x = g.op("Gather", x, index, axis=1)
    if c.depthwise:
        return _depthwise(g, c, x, dy, rows)
    if c.group > 1:
        return _grouped(g, c, x, dy)
    if c.tiny:
        return _weight_gradient_by_position(g, c, x, dy, rows)
    if c.patches:
        return _from_patches(g, c, x, dy, rows)
    layout = BATCH_LAST if c.stride != (1, 1) or c.size_in[0] <= SMALL_MAP else BATCH_SECOND
    if not c.pointwise and c.channels_in < FEW_CHANNELS:
        return _from_columns(g, c, layout, x, dy, rows)
    if c.kernel != (1, 1) and c.stride == c.dilation == (1, 1) and rows < c.channels_in and min(c.flip_pads) >= 0:
        return _per_position(g, c, _shifted_gradients(g, c, layout, dy, rows), [flat(g, layout, x)], rows)
    views = [g.op("Reshape", v, g.ints(c.channels_in, -1)) for v in windows(g, c, layout, x)]
    return _per_position(g, c, [flat(g, layout, dy)], views, rows)


def _per_position(g: Gradients, c: ConvShape, left: list[str], right: list[str], rows: int) -> str:
    """One product [rows, C_in] per kernel position; one of the two sides is shifted, the other is always the same."""
    count = c.kernel[0] * c.kernel[1]
    pairs = zip(left * (count // len(left)), right * (count // len(right)), strict=True)
    products = [g.op("Gemm", a, b, transB=1) for a, b in pairs]
    if count == 1:
        return g.op("Reshape", products[0], g.ints(-1, c.channels_in, 1, 1))  # a head has a row for each class
    shaped = g.op("Reshape", g.op("Concat", *products, axis=0), g.ints(*c.kernel, rows, c.channels_in))
    return g.op("Transpose", shaped, perm=[2, 3, 0, 1])


def _from_columns(g: Gradients, c: ConvShape, layout: Layout, x: str, dy: str, rows: int) -> str:
    """im2col, then one product [kh·kw·C_in, rows]; this way round it is the faster one."""
    views = g.op("Concat", *windows(g, c, layout, x), axis=0)
    matrix = g.op("Reshape", views, g.ints(c.kernel[0] * c.kernel[1] * c.channels_in, -1))
    product = g.op("Gemm", matrix, flat(g, layout, dy), transB=1)
    shaped = g.op("Reshape", product, g.ints(*c.kernel, c.channels_in, rows))
    return g.op("Transpose", shaped, perm=[3, 2, 0, 1])


def _from_patches(g: Gradients, c: ConvShape, x: str, dy: str, rows: int) -> str:
    """Windows side by side are the map in another order; one product [rows, C_in·kh·kw]."""
    (kh, kw), (height, width) = c.kernel, c.size_out
    if c.size_in != (height * kh, width * kw):
        x = g.op("Slice", x, g.ints(0, 0), g.ints(height * kh, width * kw), g.ints(2, 3))
    split = g.op("Reshape", x, g.ints(-1, c.channels_in, height, kh, width, kw))
    ordered = g.op("Transpose", split, perm=[1, 3, 5, 0, 2, 4])
    matrix = g.op("Reshape", ordered, g.ints(c.channels_in * kh * kw, -1))
    product = g.op("Gemm", flat(g, BATCH_SECOND, dy), matrix, transB=1)
    return g.op("Reshape", product, g.ints(rows, c.channels_in, kh, kw))


def _shifted_gradients(g: Gradients, c: ConvShape, layout: Layout, dy: str, rows: int) -> list[str]:
    """The gradient shifted instead of the input, [rows, N·H·W] each: cheaper when fewer outputs than inputs count."""
    (kh, kw), (height, width) = c.kernel, c.size_in
    top, left, bottom, right = c.flip_pads
    padded = pad_map(g, layout, dy, (top, left), (bottom, right))
    corners = [(i, j) for i in range(kh - 1, -1, -1) for j in range(kw - 1, -1, -1)]
    axes = g.ints(*layout.spatial)
    views = [g.op("Slice", padded, g.ints(i, j), g.ints(i + height, j + width), axes) for i, j in corners]
    return [g.op("Reshape", view, g.ints(rows, -1)) for view in views]


def _depthwise(g: Gradients, c: ConvShape, x: str, dy: str, rows: int) -> str:
    """A product and a sum per kernel position."""
    products = (g.op("Mul", dy, window) for window in windows(g, c, AS_IT_IS, x))
    sums = [sum_per_channel(g, product, (None, rows, *c.size_out)) for product in products]
    name = DepthwiseGradient(x, dy, c.kernel, c.stride, c.dilation, c.begin).name()
    joined = g.op("Concat", *(g.op("Unsqueeze", total, g.ints(1)) for total in sums), axis=1)
    return g.op("Reshape", joined, g.ints(rows, 1, *c.kernel), node_name=name)


def _grouped(g: Gradients, c: ConvShape, x: str, dy: str) -> str:
    """One product per group."""
    per_in, per_out = c.channels_in // c.group, c.channels_out // c.group
    split = [g.op("Reshape", v, g.ints(c.group, per_in, 1, -1)) for v in windows(g, c, BATCH_SECOND, x)]
    matrix = g.op("Reshape", g.op("Concat", *split, axis=2), g.ints(c.group, per_in * c.kernel[0] * c.kernel[1], -1))
    gradient = g.op("Reshape", channels_first(g, BATCH_SECOND, dy), g.ints(c.group, per_out, -1))
    product = g.op("MatMul", gradient, g.op("Transpose", matrix, perm=[0, 2, 1]))
    return g.op("Reshape", product, g.ints(c.channels_out, per_in, *c.kernel))


# --- maps of few pixels


@forward_form("Conv")
def conv_by_position(g: Gradients, node: Node) -> bool:
    """``y = Σ w[i, j]·x[pixels of (i, j)] + b`` over kernel positions, where the weights change.

    Constant weights stay in a Conv: ONNX Runtime lays them out once.
    """
    x, w, *bias = node.inputs
    if not g.needs(w):
        return False
    c = conv_shape(g, node)
    if not c.tiny:
        return False
    turned = g.op("Transpose", g.op("Reshape", w, g.ints(-1, len(c.positions))), perm=[1, 0])
    matrices = _split(g, c, turned, 0, (c.channels_out, c.channels_in))
    total = _sum_of_products(g, c, matrices, _inputs(g, c, x), [p.first_out for p in c.positions], c.size_out)
    if bias and bias[0]:
        total = g.op("Add", total, g.op("Reshape", bias[0], g.ints(-1, 1, 1, 1)))
    g.op("Transpose", total, name=node.outputs[0], perm=[3, 0, 1, 2])
    return True


def _input_gradient_by_position(g: Gradients, c: ConvShape, w: str, dy: str) -> str:
    """``dx = Σ w[i, j]ᵀ·dy[pixels of (i, j)]`` at stride 1, each product put where its input pixels are.

    The matrices [I, O] are made from w again: those of the forward pass would be kept until here, and are as large.
    """
    turned = g.op("Transpose", g.op("Reshape", w, g.ints(c.channels_out, -1)), perm=[1, 0])
    shaped = g.op("Reshape", turned, g.ints(c.channels_in, len(c.positions), c.channels_out))
    matrices = _split(g, c, shaped, 1, (c.channels_in, c.channels_out))
    total = _sum_of_products(g, c, matrices, _gradients(g, c, dy), [p.first_in for p in c.positions], c.size_in)
    return g.op("Transpose", total, perm=[3, 0, 1, 2])


def _weight_gradient_by_position(g: Gradients, c: ConvShape, x: str, dy: str, rows: int) -> str:
    """``dw[i, j] = dy[pixels of (i, j)]·x[pixels of (i, j)]ᵀ``."""
    pairs = zip(_gradients(g, c, dy), _inputs(g, c, x), strict=True)
    parts = g.op("Concat", *(g.op("Gemm", gradients, pixels, transB=1) for gradients, pixels in pairs), axis=0)
    turned = g.op("Transpose", g.op("Reshape", parts, g.ints(len(c.positions), rows * c.channels_in)), perm=[1, 0])
    return g.op("Reshape", turned, g.ints(rows, c.channels_in, *c.kernel))


def _split(g: Gradients, c: ConvShape, tensor: str, axis: int, shape: Pair) -> list[str]:
    """One matrix of this shape per kernel position, cut from the tensor along the axis."""
    count = len(c.positions)
    parts = g.multi("Split", tensor, g.ints(*[1] * count), names=[None] * count, axis=axis)
    return [g.op("Reshape", part, g.ints(*shape)) for part in parts]


def _inputs(g: Gradients, c: ConvShape, x: str) -> list[str]:
    """Per kernel position the input pixels that it multiplies, [I, pixels of the batch]."""
    return [_pixels(g, x, p.first_in, p.pixels, c.size_in, c.stride) for p in c.positions]


def _gradients(g: Gradients, c: ConvShape, dy: str) -> list[str]:
    """Per kernel position the gradients of the output pixels that it adds to, [O, pixels of the batch]."""
    return [_pixels(g, dy, p.first_out, p.pixels, c.size_out, (1, 1)) for p in c.positions]


def _pixels(g: Gradients, tensor: str, first: Pair, count: Pair, size: Pair, step: Pair) -> str:
    """[channels, pixels of the batch] of a rectangle of a map [N, C, *size]."""

    def make() -> str:
        view = channels_first(g, BATCH_LAST, tensor)
        if (first, count) != ((0, 0), size):
            end = [f + (n - 1) * s + 1 for f, n, s in zip(first, count, step, strict=True)]
            view = g.op("Slice", view, g.ints(*first), g.ints(*end), g.ints(1, 2), g.ints(*step))
        return g.op("Reshape", view, g.ints(0, -1))

    return g.cached(("pixels", tensor, first, count, step), make)


def _sum_of_products(
    g: Gradients, c: ConvShape, matrices: list[str], pixels: list[str], firsts: list[Pair], size: Pair
) -> str:
    """The sum [channels, H, W, N] of one product per kernel position, each padded with zeros to the whole map.

    ``firsts`` are the first pixels of the products in a map of ``size``.
    """
    products = [g.op("MatMul", matrix, part) for matrix, part in zip(matrices, pixels, strict=True)]
    moved = []
    for product, first, position in zip(products, firsts, c.positions, strict=True):
        shaped = g.op("Reshape", product, g.ints(0, *position.pixels, -1))
        if position.pixels != size:
            after = [s - f - n for s, f, n in zip(size, first, position.pixels, strict=True)]
            shaped = g.op("Pad", shaped, g.ints(0, *first, 0, 0, *after, 0))
        moved.append(shaped)
    return g.op("Sum", *moved)
