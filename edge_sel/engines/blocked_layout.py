"""Maps and kernels in blocks of channels, as ONNX Runtime's own CPU library wants them.

A map [N, C, H, W] lies as N, C/B, H, W, B; a kernel [O, I, h, w] as O/B, I/B, h, w, I, O. Their shapes are written as
before. What does not fill a block is filled up with zeros. B is 16 on AVX-512 and 8 on AVX2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "com.microsoft.nchwc"
FOUR_PADS = [0] * 4


class Kernel(NamedTuple):
    """What the kernel of a convolution is like.

    Attributes:
        channels_in: of the map.
        channels_out: of the result.
        size: (height, width).
        depthwise: one kernel for each channel.
    """

    channels_in: int
    channels_out: int
    size: tuple[int, int]
    depthwise: bool = False

    @property
    def places(self) -> int:
        """Numbers of one kernel of one channel."""
        return self.size[0] * self.size[1]


class BlockedLayout:
    """Adds nodes to a graph that lay tensors out anew, each tensor once."""

    def __init__(self, batch: int, block: int) -> None:
        self.batch, self.block = batch, block
        self.nodes: list[onnx.NodeProto] = []
        self._made: set[str] = set()
        self._maps: dict[str, str] = {}
        self._constants: dict[str, np.ndarray] = {}

    def constants(self) -> list[onnx.TensorProto]:
        """The constants that the nodes read."""
        return [numpy_helper.from_array(value, name) for name, value in self._constants.items()]

    def op(self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Append a node, unless its output was made before."""
        if output not in self._made:
            self._made.add(output)
            node = helper.make_node(op, list(inputs), [output], f"{op}::{output}", domain=domain, **attributes)
            self.nodes.append(node)
        return output

    def ints(self, values: Sequence[int]) -> str:
        """A constant int64 vector."""
        name = "blocked::" + "_".join(map(str, values))
        self._constants[name] = np.array(values, np.int64)
        return name

    def shaped(self, tensor: str, shape: Sequence[int], output: str) -> str:
        """The same numbers in another shape."""
        return self.op("Reshape", [tensor, self.ints(shape)], output)

    def turned(self, tensor: str, shape: Sequence[int], perm: Sequence[int], output: str) -> str:
        """Reshaped, then transposed."""
        return self.op("Transpose", [self.shaped(tensor, shape, f"{output}::parts")], output, perm=perm)

    def up(self, channels: int) -> int:
        """Number of channels with those that fill the last block."""
        return -(-channels // self.block) * self.block

    def filled(self, name: str, missing: Sequence[int]) -> str:
        """The tensor with so many zeros at the end of each axis."""
        if not any(missing):
            return name
        return self.op("Pad", [name, self.ints([*[0] * len(missing), *missing])], f"{name}::filled")

    def map(self, name: str) -> str:
        """The map [N, C, H, W] in blocks."""
        if name not in self._maps:
            self._maps[name] = self.op("ReorderInput", [name], f"{name}::blocked", DOMAIN)
        return self._maps[name]

    def add_map(self, name: str, blocked: str, channels: int) -> None:
        """Note a map that was made in blocks, and make the plain one that other nodes read."""
        self._maps[name] = blocked
        self.op("ReorderOutput", [blocked], name, DOMAIN, channels=channels)

    def with_rim(self, name: str, shape: Sequence[int], pads: Sequence[int]) -> str:
        """The map [N, C, H, W] in blocks, with zeros around it."""
        top, left, bottom, right = pads
        output = f"{self.map(name)}::rim{top}_{left}_{bottom}_{right}"
        channels = self.up(shape[1])
        opened = self.shaped(
            self.map(name), [self.batch * channels // self.block, *shape[2:], self.block], f"{output}::open"
        )
        padded = self.op("Pad", [opened, self.ints([0, top, left, 0, 0, bottom, right, 0])], f"{output}::wide")
        return self.shaped(padded, [self.batch, channels, shape[2] + top + bottom, shape[3] + left + right], output)

    def kernel(self, w: str, k: Kernel, *, one_in: bool = False) -> str:
        """The kernel in blocks of output channels, and of input channels too unless ``one_in``.

        Two transpositions move runs of numbers. One would move each number alone, and takes four times as long.
        """
        b, out = self.block, self.up(k.channels_out)
        have = 1 if k.depthwise else k.channels_in
        inside = have if one_in else self.up(have)
        full = self.filled(w, [out - k.channels_out, inside - have, 0, 0])
        turned = self.turned(full, [out // b, b, inside * k.places], [0, 2, 1], f"{w}::turned")
        if not one_in:
            turned = self.turned(turned, [out // b * inside // b, b, k.places, b], [0, 2, 1, 3], f"{w}::inside")
        return self.shaped(turned, [out, inside, *k.size], f"{w}::blocked")

    def backward_kernel(self, w: str, k: Kernel, places: Sequence[int], size: tuple[int, int], output: str) -> str:
        """Some places of a kernel that is not depthwise, its input and output channels exchanged.

        They are made from the blocks of the forward pass.

        Args:
            w: the kernel of the forward pass.
            k: what that one is like.
            places: of it, in the order in which they are wanted.
            size: of the kernel that they make.
            output: name.
        """
        b, out, inside = self.block, self.up(k.channels_out) // self.block, self.up(k.channels_in) // self.block
        turned = self.turned(self.kernel(w, k), [out * inside * k.places, b, b], [0, 2, 1], f"{w}::back")
        swapped = self.turned(turned, [out, inside, k.places, b * b], [1, 0, 2, 3], f"{w}::swapped")
        chosen = self.op("Gather", [swapped, self.ints(places)], f"{output}::chosen", axis=2)
        return self.shaped(chosen, [inside * b, out * b, *size], output)
