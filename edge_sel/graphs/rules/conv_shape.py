"""Static geometry of a 2-D convolution, and the orders of axes in which the products of its gradients are computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node, Pair
from edge_sel.graphs.rules.registry import Gradients

FEW_PIXELS = 16
MANY_CHANNELS = 64
"""From 3×3 pixels of 512 channels a third is saved; at 6×6 pixels of 256 there is nothing left to save."""


class Position(NamedTuple):
    """One position of a kernel. It multiplies a rectangle of input pixels, and adds to a rectangle of output pixels.

    Attributes:
        first_in: first input pixel of the rectangle, padding left out.
        first_out: the output pixel that the first input pixel adds to.
        pixels: size of the rectangle; 0 where the position meets only padding.
    """

    first_in: Pair
    first_out: Pair
    pixels: Pair


@dataclass(frozen=True)
class ConvShape:
    """Static geometry of one 2-D convolution."""

    channels_in: int
    channels_out: int
    group: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    begin: Pair
    end: Pair
    size_in: Pair
    size_out: Pair

    @property
    def depthwise(self) -> bool:
        """One kernel per channel."""
        return 1 < self.group == self.channels_in == self.channels_out

    @property
    def pointwise(self) -> bool:
        """1×1, unpadded: a matrix product per pixel."""
        return self.kernel == (1, 1) and self.begin == self.end == (0, 0)

    @property
    def patches(self) -> bool:
        """Windows side by side: each pixel is in one of them, or in none."""
        plain = self.dilation == (1, 1) and self.begin == self.end == (0, 0)
        return plain and self.group == 1 and self.kernel == self.stride != (1, 1)

    @property
    def tiny(self) -> bool:
        """Few output pixels and many channels: what is computed image by image is slow."""
        plain = self.group == 1 and not self.pointwise and not self.patches
        small = self.size_out[0] * self.size_out[1] <= FEW_PIXELS and self.channels_in >= MANY_CHANNELS
        return plain and small and all(min(position.pixels) > 0 for position in self.positions)

    @cached_property
    def positions(self) -> list[Position]:
        """All positions of the kernel, row by row."""
        return [Position(*zip(*axes, strict=True)) for axes in product(self._axis(0), self._axis(1))]

    def _axis(self, axis: int) -> list[tuple[int, int, int]]:
        """For each position along one axis: first input pixel, first output pixel, number of pixels."""
        stride, found = self.stride[axis], []
        for position in range(self.kernel[axis]):
            shift = position * self.dilation[axis] - self.begin[axis]
            first = max(0, -(shift // stride))
            last = min(self.size_out[axis] - 1, (self.size_in[axis] - 1 - shift) // stride)
            found.append((first * stride + shift, first, last - first + 1))
        return found

    @property
    def flip_pads(self) -> tuple[int, int, int, int]:
        """Padding that makes a convolution of the output gradient cover the input (stride 1)."""
        rows, columns = (d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))
        return rows - self.begin[0], columns - self.begin[1], rows - self.end[0], columns - self.end[1]


def conv_shape(g: Gradients, node: Node) -> ConvShape:
    """Read the geometry; GraphError for forms that have no rule."""
    x, w, y = ([size or 0 for size in g.shape(name)] for name in (*node.inputs[:2], node.outputs[0]))
    if len(x) != 4 or not all((*x[1:], *y[1:])):
        raise GraphError("Conv needs a 2-D map of known size", where=node.name, fix="export at a fixed image size")
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


class Layout(NamedTuple):
    """An order of axes with the channels first: the permutation from [N, C, H, W], and where H and W end up."""

    perm: tuple[int, ...]
    spatial: Pair


BATCH_SECOND = Layout((1, 0, 2, 3), (2, 3))
BATCH_LAST = Layout((1, 2, 3, 0), (1, 2))
AS_IT_IS = Layout((0, 1, 2, 3), (2, 3))


def channels_first(g: Gradients, layout: Layout, tensor: str) -> str:
    """The tensor [N, C, H, W] in this order."""
    if layout == AS_IT_IS:
        return tensor
    return g.cached(("layout", tensor, layout), lambda: g.op("Transpose", tensor, perm=list(layout.perm)))


def flat(g: Gradients, layout: Layout, tensor: str) -> str:
    """[N, C, H, W] → [C, every pixel of the batch]."""
    return g.op("Reshape", channels_first(g, layout, tensor), g.ints(0, -1))


def pad_map(g: Gradients, layout: Layout, tensor: str, begin: Pair, end: Pair) -> str:
    """The tensor [N, C, H, W] in this order, with zeros around the map."""
    ordered = channels_first(g, layout, tensor)
    if begin == end == (0, 0):
        return ordered
    pads = [0] * 8
    for axis, before, after in zip(layout.spatial, begin, end, strict=True):
        pads[axis], pads[axis + 4] = before, after
    return g.op("Pad", ordered, g.ints(*pads))


def windows(g: Gradients, c: ConvShape, layout: Layout, x: str) -> list[str]:
    """For each kernel position the pixels that it touches, padding among them, in this order of axes."""
    padded = pad_map(g, layout, x, c.begin, c.end)
    if c.pointwise and c.stride == (1, 1):
        return [padded]
    corners = [(i * c.dilation[0], j * c.dilation[1]) for i in range(c.kernel[0]) for j in range(c.kernel[1])]
    reach = [(c.size_out[axis] - 1) * c.stride[axis] + 1 for axis in (0, 1)]
    axes, steps = g.ints(*layout.spatial), g.ints(*c.stride)
    return [g.op("Slice", padded, g.ints(i, j), g.ints(i + reach[0], j + reach[1]), axes, steps) for i, j in corners]
