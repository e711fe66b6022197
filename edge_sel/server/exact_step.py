"""One step of a compiled plan by ONNX's reference implementation: slow, and in float64 almost without rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, GuiltyChannels, Hyper
from edge_sel.graphs.builder import prune
from edge_sel.graphs.check import Erf
from edge_sel.pack.manifest import OPTIMIZER_STATE
from edge_sel.pack.reader import Pack
from edge_sel.server.reference_operators import Conv, ConvTranspose, MaxPool, OneHot


class ReferenceGraph:
    """A graph whose weights are fed, in float32 or float64.

    Args:
        graph: serialised ``ModelProto``; tensors that stand outside of it must be fed.
        dtype: of every float tensor.
        outputs: which to compute, all by default; nodes that only others need are left out.
    """

    def __init__(self, graph: bytes, dtype: DTypeLike = np.float64, outputs: Sequence[str] = ()) -> None:
        self._dtype = np.dtype(dtype)
        model = onnx.load_model_from_string(graph)
        kept = [
            self._cast(tensor) for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL
        ]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        if outputs:
            _keep_only(model.graph, outputs)
        for node in model.graph.node if self._dtype == np.float64 else ():
            if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
                node.attribute[0].i = TensorProto.DOUBLE
        self._names = {name for node in model.graph.node for name in node.input}
        self._outputs = [output.name for output in model.graph.output]
        self._evaluator = ReferenceEvaluator(model, new_ops=[Erf, OneHot, Conv, ConvTranspose, MaxPool])

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs by name; what the graph does not read may be fed too."""
        given = {name: np.asarray(value) for name, value in feeds.items() if name in self._names}
        given = {n: v.astype(self._dtype) if v.dtype.kind == "f" else v for n, v in given.items()}
        with np.errstate(all="ignore"):  # a softmax that rounds to 0 is none of this program's affairs
            return dict(zip(self._outputs, self._evaluator.run(None, given), strict=True))

    def _cast(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        if tensor.data_type != TensorProto.FLOAT or self._dtype == np.float32:
            return tensor
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(self._dtype), tensor.name)


def exact_step(pack: Pack, plan: str, weights: Mapping[str, np.ndarray], batch: Batch, hyper: Hyper) -> Arrays:
    """Outputs of the plan's training graph, and of its frozen backbone before that, for a first step in float64.

    Args:
        pack: holds the graphs.
        plan: its name.
        weights: of the whole model.
        batch: images [N, 3, H, W], labels [N] and sample weights [N].
        hyper: scalars of the step.
    """
    return reference_step(pack, plan, weights, batch, hyper, np.float64)


def reference_step(
    pack: Pack, plan: str, weights: Mapping[str, np.ndarray], batch: Batch, hyper: Hyper, dtype: DTypeLike
) -> Arrays:
    """The same in either precision."""
    info, images = pack.plan(plan), batch.images
    before = pack.prefix(plan)
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


def _keep_only(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    prune(graph, outputs)
    chosen = [output for output in graph.output if output.name in outputs]
    del graph.output[:]
    graph.output.extend(chosen)
    read = {name for node in graph.node for name in node.input}
    inputs = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(inputs)
