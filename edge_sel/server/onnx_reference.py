"""ONNX's reference implementation (onnx 1.23): one step of a compiled plan, slow, in float64 almost without rounding.

With operators that it has not, or not wholly, or only slowly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, GuiltyChannels, Hyper
from edge_sel.graphs.builder import prune
from edge_sel.graphs.check import Erf
from edge_sel.pack.manifest import OPTIMIZER_STATE
from edge_sel.pack.reader import Pack
from edge_sel.server.source.base import replace_all


class ReferenceGraph:
    """A graph whose weights are fed, in float32 or float64.

    Args:
        model: serialised ``ModelProto``; tensors that stand outside of it must be fed.
        dtype: of every float tensor.
        outputs: which to compute, all by default; nodes that only others need are left out.
    """

    def __init__(self, model: bytes, dtype: DTypeLike = np.float64, outputs: Sequence[str] = ()) -> None:
        self._dtype = np.dtype(dtype)
        opened = onnx.load_model_from_string(model)
        graph = opened.graph
        inside = [tensor for tensor in graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
        replace_all(graph.initializer, [self._cast(tensor) for tensor in inside])
        if outputs:
            prune(graph, outputs)
            replace_all(graph.output, [output for output in graph.output if output.name in outputs])
        self._names = {name for node in graph.node for name in node.input}
        if outputs:
            replace_all(graph.input, [value for value in graph.input if value.name in self._names])
        for node in graph.node if self._dtype == np.float64 else ():
            if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
                node.attribute[0].i = TensorProto.DOUBLE
        self._outputs = [output.name for output in graph.output]
        self._nodes = ReferenceEvaluator(
            opened, new_ops=[Erf, OneHot, Conv, ConvTranspose, MaxPool, LogSoftmax]
        ).rt_nodes_
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        last = {name: number for number, node in enumerate(self._nodes) for name in node.input}
        self._done: list[list[str]] = [[] for _ in self._nodes]
        for name, number in last.items():
            if name not in self._outputs:
                self._done[number].append(name)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs by name; what the graph does not read may be fed too.

        ONNX's own loop keeps every tensor to the end, which of a step of ResNet-50 at 224 pixels are 8 GB.
        """
        given = {name: np.asarray(value) for name, value in feeds.items() if name in self._names}
        given = {n: v.astype(self._dtype) if v.dtype.kind == "f" else v for n, v in given.items()}
        known = {**self._constants, **given}
        with np.errstate(all="ignore"):  # a softmax that rounds to 0 is none of this program's affairs
            for node, done in zip(self._nodes, self._done, strict=True):
                made = node.run(*(known[name] if name else None for name in node.input))
                known |= {
                    n: v for n, v in zip(node.output, made, strict=False) if n in self._names or n in self._outputs
                }
                for name in done:
                    known.pop(name, None)
        return {name: known[name] for name in self._outputs}

    def _cast(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        if tensor.data_type != TensorProto.FLOAT or self._dtype == np.float32:
            return tensor
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(self._dtype), tensor.name)


def reference_step(
    pack: Pack, plan: str, weights: Mapping[str, np.ndarray], batch: Batch, hyper: Hyper, dtype: DTypeLike = np.float64
) -> Arrays:
    """Outputs of the plan's training graph, and of its frozen backbone before that, for a first step.

    Args:
        pack: holds the graphs.
        plan: its name.
        weights: of the whole model.
        batch: images [N, 3, H, W], labels [N] and sample weights [N].
        hyper: scalars of the step.
        dtype: float32 or float64.
    """
    info, images = pack.plan(plan), batch.images
    before = pack.backbone(plan)
    if before is not None:
        images = ReferenceGraph(pack.graph(before.graph), dtype).run({**weights, "x": images})["features"]
    channels = GuiltyChannels(info, weights)
    feeds = {
        **weights, **step_scalars(hyper),
        "x": images, "labels": batch.labels, "sample_weight": batch.weights,
        **{f"index::{name}": index for name, index in channels.index.items()},
        **{f"steps::{name}": steps for name, steps in channels.next_steps().items()},
    }  # fmt: skip
    for slot in OPTIMIZER_STATE[pack.manifest.optimizer]:
        feeds |= {f"{slot}::{name}": np.zeros_like(weights[name]) for name in info.trainable}
    return ReferenceGraph(pack.graph(info.train), dtype).run(feeds)


def step_scalars(hyper: Hyper) -> Arrays:
    """What a first step is fed besides arrays."""
    scalars = {
        "lr": hyper.learning_rate, "gamma": hyper.gamma,
        "momentum": hyper.momentum, "bn_momentum": hyper.bn_momentum, "step": 1.0,
    }  # fmt: skip
    return {name: np.array(value) for name, value in scalars.items()}


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


class OneHot(OpRun):
    """ONNX's own takes no depth of shape [1], which the standard allows."""

    op_domain = ""

    def _run(
        self, indices: np.ndarray, depth: np.ndarray, values: np.ndarray, axis: int | None = None
    ) -> tuple[np.ndarray]:
        members = indices[..., None] == np.arange(int(depth.reshape(-1)[0]))
        return (np.where(members, values[1], values[0]),)


class LogSoftmax(OpRun):
    """ONNX's own takes the logarithm of a softmax that rounds to 0."""

    op_domain = ""

    def _run(self, x: np.ndarray, axis: int | None = None) -> tuple[np.ndarray]:
        least = x - x.max(axis, keepdims=True)
        return (least - np.log(np.exp(least).sum(axis, keepdims=True)),)


class Conv(OpRun):
    """ONNX's own copies each window, image by image: on a MobileNet 3 times slower. Two axes and explicit pads only."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None, **attributes: Any
    ) -> tuple[np.ndarray]:
        given = _given(attributes)
        (sh, sw), (dh, dw) = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
        group, (top, left, bottom, right) = given.get("group", 1), given.get("pads", (0,) * 4)
        count, (out, per_group, kh, kw) = len(x), w.shape
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        height, width = ((x.shape[2] - (kh - 1) * dh - 1) // sh + 1, (x.shape[3] - (kw - 1) * dw - 1) // sw + 1)
        x, w = x.reshape(count, group, per_group, *x.shape[2:]), w.reshape(group, out // group, per_group, kh, kw)
        y = np.zeros((count, group, out // group, height * width), x.dtype)
        for i in range(kh):
            for j in range(kw):
                seen = x[..., i * dh : i * dh + (height - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw]
                seen = seen.reshape(count, group, per_group, height * width)
                # A matrix product of one row and one column each is slow.
                y += w[:, :, 0, i, j, None] * seen if per_group == 1 else w[..., i, j] @ seen
        y = y.reshape(count, out, height, width)
        return (y if bias is None else y + bias[:, None, None],)


class ConvTranspose(OpRun):
    """ONNX's own takes no groups of several channels (onnx 1.23)."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None, **attributes: Any
    ) -> tuple[np.ndarray]:
        given = _given(attributes)
        (sh, sw), (dh, dw) = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
        group, pads, extra = given.get("group", 1), given.get("pads", (0,) * 4), given.get("output_padding", (0, 0))
        (count, _, height, width), (_, per_out, kh, kw) = x.shape, w.shape
        full = ((height - 1) * sh + (kh - 1) * dh + 1 + extra[0], (width - 1) * sw + (kw - 1) * dw + 1 + extra[1])
        y = np.zeros((count, group, per_out, *full), x.dtype)
        x, w = x.reshape(count, group, -1, height, width), w.reshape(group, -1, per_out, kh, kw)
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (height - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (width - 1) * sw + 1, sw)
                y[..., rows, columns] += np.einsum("ngchw,gco->ngohw", x, w[..., i, j], optimize=True)
        y = y.reshape(count, group * per_out, *full)
        y = y[:, :, pads[0] : full[0] - pads[2], pads[1] : full[1] - pads[3]]
        return (y if bias is None else y + bias[:, None, None],)


class MaxPool(OpRun):
    """ONNX's own rounds a window too many up, and is slow."""

    op_domain = ""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        given = _given(attributes)
        kernel, pads = given["kernel_shape"], given.get("pads", (0,) * 4)
        strides, dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
        spans = [(kernel[i] - 1) * dilations[i] + 1 for i in (0, 1)]
        sizes, ends, ceil = [0, 0], [0, 0], given.get("ceil_mode", 0)
        for i in (0, 1):
            room = x.shape[2 + i] + pads[i] + pads[2 + i] - spans[i]
            sizes[i] = (-(-room // strides[i]) if ceil else room // strides[i]) + 1
            if (
                ceil and (sizes[i] - 1) * strides[i] >= x.shape[2 + i] + pads[i]
            ):  # the last window begins outside of the image
                sizes[i] -= 1
            ends[i] = max(0, (sizes[i] - 1) * strides[i] + spans[i] - pads[i] - x.shape[2 + i])
        around = ((0, 0), (0, 0), (pads[0], ends[0]), (pads[1], ends[1]))

        def windows(values: np.ndarray) -> np.ndarray:
            seen = sliding_window_view(values, spans, (2, 3))[:, :, :: strides[0], :: strides[1]]
            seen = seen[:, :, : sizes[0], : sizes[1], :: dilations[0], :: dilations[1]]
            return seen.reshape(*seen.shape[:4], -1)

        pixels = windows(np.pad(x, around, constant_values=-np.inf))
        places = windows(np.pad(np.arange(x.size).reshape(x.shape), around))
        best = pixels.argmax(-1)[..., None]
        return np.take_along_axis(pixels, best, -1)[..., 0], np.take_along_axis(places, best, -1)[..., 0]
