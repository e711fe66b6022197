"""One step of a compiled plan in float64, by ONNX's reference implementation: slow, and almost without rounding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, GuiltyChannels, Hyper
from edge_sel.graphs.check import Erf
from edge_sel.pack.manifest import OPTIMIZER_STATE
from edge_sel.pack.reader import Pack


def exact_step(pack: Pack, plan: str, weights: Mapping[str, np.ndarray], batch: Batch, hyper: Hyper) -> Arrays:
    """Outputs of the plan's training graph, and of its frozen backbone before that, for a first step.

    Args:
        pack: holds the graphs.
        plan: its name.
        weights: of the whole model.
        batch: images [N, 3, H, W], labels [N] and sample weights [N].
        hyper: scalars of the step.
    """
    info, images = pack.plan(plan), batch.images
    before = pack.prefix(plan)
    if before is not None:
        images = _run(pack.graph(before.graph), {**weights, "x": images})["features"]
    channels = GuiltyChannels(info, weights)
    scalars = {
        "lr": hyper.learning_rate, "gamma": hyper.gamma, "weight_decay": hyper.weight_decay,
        "momentum": hyper.momentum, "bn_momentum": hyper.bn_momentum, "step": 1.0,
    }  # fmt: skip
    feeds = {
        **weights, **{name: np.float64(value) for name, value in scalars.items()},
        "x": images, "labels": batch.labels, "sample_weight": batch.weights,
        **{f"index::{name}": index for name, index in channels.index.items()},
        **{f"steps::{name}": steps for name, steps in channels.next_steps().items()},
    }  # fmt: skip
    for slot in OPTIMIZER_STATE[pack.manifest.optimizer]:
        feeds |= {f"{slot}::{name}": np.zeros_like(weights[name]) for name in info.trainable}
    return _run(pack.graph(info.train), feeds)


def _run(graph: bytes, feeds: Mapping[str, np.ndarray]) -> Arrays:
    model = onnx.load_model_from_string(graph)
    kept = [_double(tensor) for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            node.attribute[0].i = TensorProto.DOUBLE
    names = {name for node in model.graph.node for name in node.input}
    given = {name: np.asarray(value) for name, value in feeds.items() if name in names}
    given = {n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in given.items()}
    outputs = [output.name for output in model.graph.output]
    return dict(zip(outputs, ReferenceEvaluator(model, new_ops=[Erf, OneHot]).run(None, given), strict=True))


def _double(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


class OneHot(OpRun):
    """ONNX's own takes no depth of shape [1], which the standard allows."""

    op_domain = ""

    def _run(
        self, indices: np.ndarray, depth: np.ndarray, values: np.ndarray, axis: int | None = None
    ) -> tuple[np.ndarray]:
        members = indices[..., None] == np.arange(int(depth.reshape(-1)[0]))
        return (np.where(members, values[1], values[0]),)
