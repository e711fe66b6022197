"""Orders of axes in which the products of a convolution's gradients are computed."""

from __future__ import annotations

from typing import NamedTuple

from edge_sel.graphs.rules.conv_shape import ConvShape
from edge_sel.graphs.rules.registry import Gradients


class Layout(NamedTuple):
    """An order of axes with the channels first: the permutation from [N, C, H, W], and where H and W end up."""

    perm: tuple[int, ...]
    spatial: tuple[int, int]

    def pads(self, begin: tuple[int, int], end: tuple[int, int]) -> list[int]:
        """Attribute-style pads for the spatial axes."""
        pads = [0] * 8
        for axis, before, after in zip(self.spatial, begin, end, strict=True):
            pads[axis], pads[axis + 4] = before, after
        return pads


BATCH_SECOND = Layout((1, 0, 2, 3), (2, 3))
BATCH_LAST = Layout((1, 2, 3, 0), (1, 2))
AS_IT_IS = Layout((0, 1, 2, 3), (2, 3))


def channels_first(g: Gradients, layout: Layout, tensor: str) -> str:
    """The tensor [N, C, H, W] in this order."""
    return g.cached(("layout", tensor, layout), lambda: g.op("Transpose", tensor, perm=list(layout.perm)))


def flat(g: Gradients, layout: Layout, tensor: str) -> str:
    """[N, C, H, W] → [C, every pixel of the batch]."""
    return g.op("Reshape", channels_first(g, layout, tensor), g.ints(0, -1))


def pad(g: Gradients, layout: Layout, tensor: str, begin: tuple[int, int], end: tuple[int, int]) -> str:
    """With zeros around the map."""
    return tensor if begin == end == (0, 0) else g.op("Pad", tensor, g.ints(*layout.pads(begin, end)))


def windows(g: Gradients, c: ConvShape, layout: Layout, padded: str) -> list[str]:
    """For each kernel position the pixels that it touched."""
    if c.pointwise and c.stride == (1, 1):
        return [padded]
    corners = [(i * c.dilation[0], j * c.dilation[1]) for i in range(c.kernel[0]) for j in range(c.kernel[1])]
    reach = [(c.size_out[axis] - 1) * c.stride[axis] + 1 for axis in (0, 1)]
    axes, steps = g.ints(*layout.spatial), g.ints(*c.stride)
    return [g.op("Slice", padded, g.ints(i, j), g.ints(i + reach[0], j + reach[1]), axes, steps) for i, j in corners]
