"""What a node's name says of the nodes before it, for an engine that knows a faster form of them."""

from __future__ import annotations

import json
from typing import NamedTuple

_DEPTHWISE = "depthwise_gradient:"
Pair = tuple[int, int]


class DepthwiseGradient(NamedTuple):
    """The gradient by the weight of a depthwise convolution; pairs are (height, width).

    Attributes:
        x: name of its input [N, C, H, W].
        dy: name of the gradient by its output [N, C, H', W'].
        kernel: size.
        strides: of the convolution.
        dilations: likewise.
        pads: at the beginning of each axis.
    """

    x: str
    dy: str
    kernel: Pair
    strides: Pair
    dilations: Pair
    pads: Pair

    def name(self) -> str:
        """For the node that makes it."""
        return _DEPTHWISE + json.dumps(self)

    def end_pads(self, size: tuple[int, ...], out: tuple[int, ...]) -> Pair:
        """Padding at the end of each axis, so that a convolution of x with dy has the size of the kernel."""
        rows, columns = (
            (self.kernel[i] - 1) * self.dilations[i] + (out[i] - 1) * self.strides[i] + 1 - size[i] - self.pads[i]
            for i in (0, 1)
        )
        return rows, columns


def read_depthwise_gradient(name: str) -> DepthwiseGradient | None:
    """What a node's name says; None if it says nothing of this kind."""
    if not name.startswith(_DEPTHWISE):
        return None
    try:
        x, dy, *pairs = json.loads(name[len(_DEPTHWISE) :])
        kernel, strides, dilations, pads = ((int(a), int(b)) for a, b in pairs)
    except (ValueError, TypeError):
        return None
    return DepthwiseGradient(str(x), str(dy), kernel, strides, dilations, pads)
