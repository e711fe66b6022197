"""Rewrite a training graph for the blocked convolutions of ONNX Runtime's own CPU library.

ONNX Runtime lays channels out in blocks where the weights of a convolution are constant. In a training step they are
not; but its operators of the domain ``com.microsoft.nchwc`` take any weights that are laid out so. Three things are
rewritten: convolutions of more than one pixel; transposed ones, as the input gradients of strides; and the weight
gradients of depthwise convolutions. These are themselves depthwise convolutions, of the map with its own output
gradient for a kernel: one group for each channel of each image, so that nothing is copied, shifted or summed up in
between (4 to 10 times faster than a product and a sum for each place of the kernel).

The pack stays standard ONNX; this happens on the device, for batches of one size.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edge_sel.engines.blocked_layout import DOMAIN, FOUR_PADS, BlockedLayout, Kernel
from edge_sel.engines.native import CPU, ort
from edge_sel.graphs.builder import Builder, prune
from edge_sel.graphs.ir import BATCH, DepthwiseGradient, read_depthwise_gradient

_FEW_TIMES_SIX = (6, 12)
"""Widths at which zeros are better laid around the map beforehand: six pixels of a row are computed at once, but not
those that touch a rim. A quarter of the time at width 6, an eighth at 12; nothing at 24 and at other widths."""

_LARGEST_KERNEL = 10_000
"""A Slice backwards whose end is less than minus this takes the whole axis."""

_RELAYING = 4
"""Where a kernel has this many times the numbers of the larger map, laying it out anew costs more than is gained."""

_SAME = 1e-4
"""Largest difference that rounding makes, relative to the largest number."""


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
    return _Rewriter(shape_inference.infer_shapes(model), batch, block).run()


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, batch: int, block: int) -> None:
        self.model, self.layout = model, BlockedLayout(batch, block)
        graph = model.graph
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.constant = set(self.shapes)
        for value in (*graph.input, *graph.value_info, *graph.output):
            self.shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        self.flipped = _flipped_kernels(graph)

    def run(self) -> bytes | None:
        graph, layout = self.model.graph, self.layout
        rewritten = [self._node(node) for node in graph.node]
        if not any(rewritten):
            return None
        del graph.node[:], graph.value_info[:]
        graph.node.extend(layout.nodes)
        prune(graph, [value.name for value in graph.output])
        graph.initializer.extend(layout.constants())
        self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return bytes(self.model.SerializeToString())

    def _node(self, node: onnx.NodeProto) -> bool:
        """Append the node, or its blocked form; whether it was rewritten."""
        gradient = read_depthwise_gradient(node.name)
        if gradient is not None and self._can_gradient(gradient):
            self._gradient(gradient, node.output[0])
        elif node.op_type == "Conv" and (kernel := self._kernel_of(node)) is not None:
            self._conv(node, kernel)
        elif node.op_type != "ConvTranspose" or not self._transposed(node):
            self.layout.nodes.append(node)
            return False
        return True

    def _kernel_of(self, node: onnx.NodeProto) -> Kernel | None:
        """The kernel of a convolution; None where it has one pixel, is constant, or has no blocked form."""
        x, w, y = (self.shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
        if node.input[1] in self.constant or len(x) != 4 or len(w) != 4 or 0 in (*x, *w) or w[2:] == (1, 1):
            return None
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        depthwise = 1 < group == w[0] and w[1] == 1
        if (group != 1 and not depthwise) or w[0] % 4 or (x[1] % 4 and x[1] >= self.layout.block):
            return None
        if not depthwise and np.prod(w) > _RELAYING * max(np.prod(x), np.prod(y)):
            return None
        return Kernel(x[1], w[0], (w[2], w[3]), depthwise)

    def _conv(self, node: onnx.NodeProto, k: Kernel) -> None:
        layout, (x, w, *bias), y = self.layout, node.input, node.output[0]
        few = not k.depthwise and k.channels_in < layout.block  # an image: its channels need no blocks
        attributes = _window(node)
        six = self.shapes[y][3] in _FEW_TIMES_SIX and not few and not k.depthwise
        if six and any(attributes["pads"]):
            image, attributes["pads"] = layout.with_rim(x, self.shapes[x], attributes["pads"]), FOUR_PADS
        else:
            image = x if few else layout.map(x)
        if w in self.flipped and min(k.channels_in, k.channels_out) >= layout.block:
            forward = Kernel(k.channels_out, k.channels_in, k.size)
            backwards = range(k.places - 1, -1, -1)
            kernel = layout.backward_kernel(self.flipped[w], forward, backwards, k.size, f"{w}::blocked")
        else:
            kernel = layout.kernel(w, k, one_in=k.depthwise or few)
        inputs = [image, kernel]
        out = layout.up(k.channels_out)
        if bias and bias[0]:
            inputs.append(layout.filled(bias[0], [out - k.channels_out]))
        blocked = layout.op("Conv", inputs, f"{y}::blocked", DOMAIN, kernel_shape=k.size, auto_pad="NOTSET",
                            group=out if k.depthwise else 1, **attributes)  # fmt: skip
        layout.add_map(y, blocked, k.channels_out)

    def _transposed(self, node: onnx.NodeProto) -> bool:
        """Every ``s``-th row and column is a convolution of its own with every ``s``-th place of the kernel."""
        layout, (dy, w), dx = self.layout, node.input[:2], node.output[0]
        k = self._forward_kernel_of(node)
        if k is None:
            return False
        strides, pads, _ = _window(node).values()
        parts = [_parts(self.shapes[dx][2 + i], self.shapes[dy][2 + i], k.size[i], strides[i], pads[i]) for i in (0, 1)]
        if not parts[0] or not parts[1]:
            return False
        out = layout.up(k.channels_in)
        rows = []
        for r, (taps, *row_pads) in enumerate(parts[0]):
            columns = []
            for c, (places, *column_pads) in enumerate(parts[1]):
                name, size = f"{dx}::{r}_{c}", (len(taps), len(places))
                chosen = [i * k.size[1] + j for i in taps for j in places]
                kernel = layout.backward_kernel(w, k, chosen, size, f"{name}::kernel")
                part = layout.op(
                    "Conv", [layout.map(dy), kernel], name, DOMAIN, kernel_shape=size, auto_pad="NOTSET",
                    strides=[1, 1], dilations=[1, 1], group=1,
                    pads=[row_pads[0], column_pads[0], row_pads[1], column_pads[1]],
                )  # fmt: skip
                columns.append(layout.shaped(part, [-1, layout.block], f"{name}::pixels"))
            row = layout.op("Concat", columns, f"{dx}::{r}", axis=1)
            rows.append(layout.shaped(row, [-1, self.shapes[dx][3] * layout.block], f"{dx}::{r}::rows"))
        whole = layout.op("Concat", rows, f"{dx}::rows", axis=1)
        blocked = layout.shaped(whole, [layout.batch, out, *self.shapes[dx][2:]], f"{dx}::blocked")
        layout.add_map(dx, blocked, k.channels_in)
        return True

    def _forward_kernel_of(self, node: onnx.NodeProto) -> Kernel | None:
        """The kernel of the convolution whose input gradient this transposed one is; None where it stays as it is."""
        k, dx = self._kernel_of(node), self.shapes.get(node.output[0], ())
        if k is None or _window(node)["dilations"] != [1, 1] or len(node.input) > 2 or len(dx) != 4 or 0 in dx:
            return None
        if k.depthwise or dx[1] % 4 or min(dx[1], k.channels_in) < self.layout.block:
            return None  # a depthwise one is as fast as it is, and smaller
        return Kernel(dx[1], k.channels_in, k.size)

    def _can_gradient(self, g: DepthwiseGradient) -> bool:
        x, dy = self.shapes.get(g.x, ()), self.shapes.get(g.dy, ())
        known = len(x) == len(dy) == 4 and x[0] == dy[0] == self.layout.batch and x[1] == dy[1] and 0 not in (*x, *dy)
        return known and x[1] % 4 == 0 and min(g.end_pads(x[2:], dy[2:])) >= 0

    def _gradient(self, g: DepthwiseGradient, output: str) -> None:
        """``dw[c] = Σₙ x[n, c] * dy[n, c]``: a convolution for each image and channel, then the sum over images."""
        layout, x, dy = self.layout, self.shapes[g.x], self.shapes[g.dy]
        channels, places = layout.up(x[1]), g.kernel[0] * g.kernel[1]
        groups = layout.batch * channels
        image = layout.shaped(layout.map(g.x), [1, groups, *x[2:]], f"{output}::map")
        kernel = layout.shaped(layout.map(g.dy), [groups, 1, *dy[2:]], f"{output}::kernel")
        each = layout.op(
            "Conv", [image, kernel], f"{output}::each", DOMAIN, kernel_shape=list(dy[2:]), group=groups,
            strides=list(g.dilations), dilations=list(g.strides), auto_pad="NOTSET",
            pads=[*g.pads, *g.end_pads(x[2:], dy[2:])],
        )  # fmt: skip
        split = [layout.batch, channels // layout.block, places, layout.block]
        parts = layout.shaped(each, split, f"{output}::parts")
        total = layout.op("ReduceSum", [parts, layout.ints([0])], f"{output}::sum", keepdims=0)
        turned = layout.op("Transpose", [total], f"{output}::turned", perm=[0, 2, 1])
        made = layout.shaped(turned, [channels, 1, *g.kernel], f"{output}::made")
        if channels != x[1]:
            ends = [layout.ints([0]), layout.ints([x[1]]), layout.ints([0])]
            made = layout.op("Slice", [made, *ends], f"{output}::cut")
        layout.op("Identity", [made], output)


def _window(node: onnx.NodeProto) -> dict[str, list[int]]:
    """Strides, pads and dilations of a convolution."""
    given = {a.name: list(a.ints) for a in node.attribute if a.name in ("strides", "pads", "dilations")}
    return {"strides": [1, 1], "pads": FOUR_PADS, "dilations": [1, 1], **given}


def _flipped_kernels(graph: onnx.GraphProto) -> dict[str, str]:
    """Kernels that are others turned by 180° with O and I exchanged, as input gradients have them."""
    ints = {t.name: numpy_helper.to_array(t).ravel() for t in graph.initializer if t.data_type == TensorProto.INT64}
    turned, found = {}, {}
    for node in graph.node:
        source = node.input[0] if node.input else ""
        if node.op_type == "Slice" and len(node.input) == 5:
            starts, ends, axes, steps = (list(ints.get(name, ())) for name in node.input[1:])
            if starts == steps == [-1, -1] and axes == [2, 3] and ends and max(ends) < -_LARGEST_KERNEL:
                turned[node.output[0]] = source
        elif node.op_type == "Transpose" and source in turned and list(node.attribute[0].ints) == [1, 0, 2, 3]:
            found[node.output[0]] = turned[source]
    return found


def _parts(size: int, size_dy: int, kernel: int, stride: int, pad: int) -> list[tuple[list[int], int, int]] | None:
    """One axis of a transposed convolution, for the pixels r, r + s, r + 2s, … of each r.

    Pixel ``i`` gets ``dy[o]·w[k]`` for all ``o·s − p + k = i``.

    Returns:
        for each r the places of the kernel in the order of ``o``, and how much the gradient is padded at its beginning
        and at its end; None where some pixels get nothing, or where the gradient would be cut.
    """
    if size % stride or kernel < stride:
        return None
    found = []
    for r in range(stride):
        taps = list(range((r + pad) % stride, kernel, stride))[::-1]
        begin = (taps[0] - r - pad) // stride
        end = size // stride - size_dy - begin + len(taps) - 1
        if min(begin, end) < 0:
            return None
        found.append((taps, begin, end))
    return found


@cache
def block_size() -> int | None:
    """Channels in a block of ONNX Runtime's convolutions on this machine.

    None where these operators are missing, or do not do what is expected.
    """
    for block in (16, 8):
        try:
            if _agrees(block):
                return block
        except Exception:  # of onnxruntime, which has no common exception type
            continue
    return None


def _agrees(block: int) -> bool:
    """Whether a small convolution and a small depthwise gradient come out the same in either form."""
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
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    found = []
    for graph in (plain, rewrite(plain, 2, block)):
        session = ort.InferenceSession(graph, options, providers=[CPU])
        found.append(session.run(names, feeds))
    return all(np.abs(p - q).max() <= _SAME * np.abs(p).max() for p, q in zip(*found, strict=True))
