"""Static geometry of a 2-D convolution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules.registry import Gradients

FEW_PIXELS = 16
MANY_CHANNELS = 64
"""From 3×3 pixels of 512 channels a third is saved; at 6×6 pixels of 256 there is nothing left to save."""

Pair = tuple[int, int]
"""(height, width)"""


class Place(NamedTuple):
    """A place of a kernel and the pixels that it touches.

    Attributes:
        first_in: of these the first pixel of the map.
        first_out: the pixel of the result to which it counts.
        pixels: how many there are of each; 0 where only padding is touched.
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
        return plain and small and all(min(place.pixels) > 0 for place in self.places)

    @cached_property
    def places(self) -> list[Place]:
        """All places of the kernel, row by row."""
        return [Place(*zip(*axes, strict=True)) for axes in product(self._axis(0), self._axis(1))]

    def _axis(self, axis: int) -> list[tuple[int, int, int]]:
        """For each place of one axis the first pixel of the map, the first of the result, and their number."""
        stride, found = self.stride[axis], []
        for place in range(self.kernel[axis]):
            shift = place * self.dilation[axis] - self.begin[axis]
            first = max(0, -(shift // stride))
            last = min(self.size_out[axis] - 1, (self.size_in[axis] - 1 - shift) // stride)
            found.append((first * stride + shift, first, last - first + 1))
        return found

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
