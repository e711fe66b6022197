"""Rewrite a training graph for the blocked convolutions of ONNX Runtime's own CPU library.

ONNX Runtime lays channels out in blocks of 16 (AVX-512) or 8 (AVX2) where the weights of a convolution are constant. In
a training step they are not; but its operators of the domain ``com.microsoft.nchwc`` take any weights that lie in the
order O/B, I/B, kernel, I, O. Two things are rewritten: convolutions of more than one pixel, and the weight gradients of
depthwise convolutions. These are themselves depthwise convolutions, of the map with its own output gradient for a
kernel: one group for each channel of each image, so that nothing is copied, shifted or summed up in between (4 to 10
times faster than a product and a sum for each place of the kernel).

The pack stays standard ONNX; this happens on the device, for batches of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edge_sel.graphs.annotations import DepthwiseGradient, read_depthwise_gradient
from edge_sel.graphs.ir import BATCH
from edge_sel.graphs.prune import prune

DOMAIN = "com.microsoft.nchwc"
_SAME = 1e-4


class _Conv(NamedTuple):
    """A convolution that can be rewritten."""

    channels_in: int
    channels_out: int
    depthwise: bool
    kernel: tuple[int, int]


def rewrite(graph: bytes, batch: int, block: int) -> bytes | None:
    """The graph for batches of this size, or None where there is nothing to gain.

    Args:
        graph: serialised training graph.
        batch: images in a batch.
        block: channels in a block.
    """
    model = onnx.load_model_from_string(graph)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = batch
    rewriter = _Rewriter(shape_inference.infer_shapes(model), batch, block)
    return rewriter.run()


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, batch: int, block: int) -> None:
        self.model, self.batch, self.block = model, batch, block
        graph = model.graph
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.constant = set(self.shapes)
        for value in (*graph.input, *graph.value_info, *graph.output):
            self.shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, np.ndarray] = {}
        self.blocked: dict[str, str] = {}
        self.kernels: dict[str, str] = {}
        self.count = 0

    def run(self) -> bytes | None:
        for node in self.model.graph.node:
            gradient = read_depthwise_gradient(node.name)
            if gradient is not None and self._can_gradient(gradient):
                self._gradient(gradient, node.output[0])
            elif (conv := self._convolution(node)) is not None:
                self._conv(node, conv)
            else:
                self.nodes.append(node)
        if not self.count:
            return None
        graph = self.model.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        prune(graph, [value.name for value in graph.output])
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self.added.items())
        self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return bytes(self.model.SerializeToString())

    def _up(self, channels: int) -> int:
        return -(-channels // self.block) * self.block

    def _ints(self, values: Sequence[int]) -> str:
        name = "blocked::" + "_".join(map(str, values))
        self.added[name] = np.array(values, np.int64)
        return name

    def _op(self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], f"{op}::{output}", domain=domain, **attributes))
        return output

    def _blocked(self, name: str) -> str:
        """The tensor [N, C, H, W] in blocks; its channels are filled up with zeros."""
        if name not in self.blocked:
            self.blocked[name] = self._op("ReorderInput", [name], f"{name}::blocked", DOMAIN)
        return self.blocked[name]

    def _convolution(self, node: onnx.NodeProto) -> _Conv | None:
        """What it is, if it is one of more than one pixel with weights that change."""
        if node.op_type != "Conv" or node.input[1] in self.constant:
            return None
        x, w = (self.shapes.get(name, ()) for name in node.input[:2])
        if len(x) != 4 or len(w) != 4 or 0 in (*x, *w) or w[2:] == (1, 1):
            return None
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        depthwise = 1 < group == w[0] and w[1] == 1
        if (group != 1 and not depthwise) or w[0] % 4 or (x[1] % 4 and x[1] >= self.block):
            return None
        if not depthwise and np.prod(w) > np.prod(x):  # a small map: to lay the weights out anew costs more
            return None
        return _Conv(x[1], w[0], depthwise, (w[2], w[3]))

    def _conv(self, node: onnx.NodeProto, conv: _Conv) -> None:
        x, w, *bias = node.input
        y, out = node.output[0], self._up(conv.channels_out)
        few = not conv.depthwise and conv.channels_in < self.block  # an image: its channels need no blocks
        given = {a.name: list(a.ints) for a in node.attribute if a.name in ("strides", "pads", "dilations")}
        inputs = [x if few else self._blocked(x), self._kernel(w, conv, one_in=conv.depthwise or few)]
        if bias and bias[0]:
            inputs.append(self._filled(bias[0], [out - conv.channels_out]))
        attributes = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], **given}
        self._op("Conv", inputs, f"{y}::blocked", DOMAIN, kernel_shape=list(conv.kernel), auto_pad="NOTSET",
                 group=out if conv.depthwise else 1, **attributes)  # fmt: skip
        self.blocked[y] = f"{y}::blocked"
        self._op("ReorderOutput", [f"{y}::blocked"], y, DOMAIN, channels=conv.channels_out)
        self.count += 1

    def _kernel(self, w: str, conv: _Conv, *, one_in: bool) -> str:
        """OIHW in blocks of output channels, and of input channels unless these stay as they are."""
        if w not in self.kernels:
            b, out = self.block, self._up(conv.channels_out)
            inside = (1 if conv.depthwise else conv.channels_in) if one_in else self._up(conv.channels_in)
            have = 1 if conv.depthwise else conv.channels_in
            full = self._filled(w, [out - conv.channels_out, inside - have, 0, 0])
            split = [out // b, b, inside, *conv.kernel] if one_in else [out // b, b, inside // b, b, *conv.kernel]
            parts = self._op("Reshape", [full, self._ints(split)], f"{w}::parts")
            order = [0, 2, 3, 4, 1] if one_in else [0, 2, 4, 5, 3, 1]
            turned = self._op("Transpose", [parts], f"{w}::turned", perm=order)
            self.kernels[w] = self._op("Reshape", [turned, self._ints([out, inside, *conv.kernel])], f"{w}::blocked")
        return self.kernels[w]

    def _filled(self, name: str, missing: Sequence[int]) -> str:
        """With zeros at the end of each axis."""
        if not any(missing):
            return name
        return self._op("Pad", [name, self._ints([*[0] * len(missing), *missing])], f"{name}::filled")

    def _can_gradient(self, g: DepthwiseGradient) -> bool:
        x, dy = self.shapes.get(g.x, ()), self.shapes.get(g.dy, ())
        known = len(x) == len(dy) == 4 and x[0] == dy[0] == self.batch and x[1] == dy[1] and 0 not in (*x, *dy)
        return known and x[1] % 4 == 0 and min(g.end_pads(x[2:], dy[2:])) >= 0

    def _gradient(self, g: DepthwiseGradient, output: str) -> None:
        """``dw[c] = Σₙ x[n, c] * dy[n, c]``: a convolution for each image and channel, then the sum over images."""
        x, dy = self.shapes[g.x], self.shapes[g.dy]
        channels, places = self._up(x[1]), g.kernel[0] * g.kernel[1]
        groups = self.batch * channels
        image = self._op("Reshape", [self._blocked(g.x), self._ints([1, groups, *x[2:]])], f"{output}::map")
        kernel = self._op("Reshape", [self._blocked(g.dy), self._ints([groups, 1, *dy[2:]])], f"{output}::kernel")
        each = self._op(
            "Conv", [image, kernel], f"{output}::each", DOMAIN, kernel_shape=list(dy[2:]), group=groups,
            strides=list(g.dilations), dilations=list(g.strides), auto_pad="NOTSET",
            pads=[*g.pads, *g.end_pads(x[2:], dy[2:])],
        )  # fmt: skip
        split = [self.batch, channels // self.block, places, self.block]
        parts = self._op("Reshape", [each, self._ints(split)], f"{output}::parts")
        total = self._op("ReduceSum", [parts, self._ints([0])], f"{output}::sum", keepdims=0)
        turned = self._op("Transpose", [total], f"{output}::turned", perm=[0, 2, 1])
        made = self._op("Reshape", [turned, self._ints([channels, 1, *g.kernel])], f"{output}::made")
        if channels != x[1]:
            made = self._op("Slice", [made, self._ints([0]), self._ints([x[1]]), self._ints([0])], f"{output}::cut")
        self._op("Identity", [made], output)
        self.count += 1


@cache
def block_size() -> int | None:
    """Channels in a block on this machine; None where these operators are missing, or do not do what is expected."""
    for block in (16, 8):
        try:
            if _agrees(block):
                return block
        except Exception:  # of onnxruntime, which has no common exception type
            continue
    return None


def _agrees(block: int) -> bool:
    """Whether a small convolution and a small depthwise gradient come out the same in either form."""
    import onnxruntime

    from edge_sel.graphs.builder import Builder

    rng = np.random.default_rng(0)
    values = {"x": (2, 20, 6, 5), "w": (24, 20, 3, 3), "d": (20, 1, 3, 3), "dy": (2, 20, 3, 3)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in values.items()}
    b = Builder()
    b.op("Conv", "x", "w", name="plain", pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    b.op("Conv", "x", "d", name="deep", pads=[1, 1, 1, 1], strides=[2, 2], group=20, kernel_shape=[3, 3])
    g = DepthwiseGradient("x", "dy", (3, 3), (2, 2), (1, 1), (1, 1))
    padded = b.op("Pad", "x", b.ints(0, 0, 1, 1, 0, 0, 1, 1))
    sums = []
    for i in range(3):
        for j in range(3):
            window = b.op("Slice", padded, b.ints(i, j), b.ints(i + 5, j + 5), b.ints(2, 3), b.ints(2, 2))
            sums.append(b.op("ReduceSum", b.op("Mul", "dy", window), b.ints(0, 2, 3), keepdims=1))
    b.op("Reshape", b.op("Concat", *sums, axis=2), b.ints(20, 1, 3, 3), name="dw", node_name=g.name())
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
    names = ["plain", "deep", "dw"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    plain = b.model(inputs, outputs, {}, "probe").SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    found = []
    for graph in (plain, rewrite(plain, 2, block)):
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found.append(session.run(names, feeds))
    return all(np.abs(p - q).max() <= _SAME * np.abs(p).max() for p, q in zip(*found, strict=True))
