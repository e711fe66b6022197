"""A three-layer classifier written in ONNX by hand, and the smallest pack around it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sel.graphs.cost import executed_flops
from edge_sel.graphs.ir import BATCH, CLASSES, OPSET
from edge_sel.graphs.plans import head_names, make_plan
from edge_sel.graphs.read import read_forward
from edge_sel.graphs.train import compile_eval, compile_score, compile_train
from edge_sel.pack.manifest import EVAL, Calibration, Manifest, ModelInfo, PlanInfo

HEIGHT, WIDTH, FILTERS, CLASS_COUNT = 6, 8, 4, 5

LAYERS = (
    helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["convolved"], "convolution", pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["convolved"], ["positive"], "rectifier"),
    helper.make_node("ReduceMean", ["positive", "axes"], ["features"], "pool", keepdims=0),
    helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], "head", transB=1),
)


def tiny_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "conv.weight": (FILTERS, 3, 3, 3), "conv.bias": (FILTERS,),
        "head.weight": (CLASS_COUNT, FILTERS), "head.bias": (CLASS_COUNT,),
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def tiny_model(
    layers: Sequence[onnx.NodeProto] = LAYERS,
    *,
    extra: Mapping[str, np.ndarray] | None = None,
    inputs: Sequence[str] = ("x",),
    output: str = "logits",
    domains: Sequence[str] = ("",),
) -> onnx.ModelProto:
    """The forward graph; other layers, constants, inputs and domains where a test wants them."""
    values = {**tiny_weights(), "axes": np.array([2, 3], np.int64), **(extra or {})}
    used = {name for layer in layers for name in layer.input}
    graph = helper.make_graph(
        list(layers),
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [BATCH, 3, HEIGHT, WIDTH]) for n in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [BATCH, CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in values.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(d, OPSET if not d else 1) for d in domains])


def tiny_pack(
    plans: Sequence[str] = ("head", "full"),
) -> tuple[Manifest, dict[str, np.ndarray], dict[str, onnx.ModelProto]]:
    """What ``write_pack`` takes after the path."""
    forward = read_forward(tiny_model())
    graphs, compiled = {EVAL: compile_eval(forward)}, {}
    for name in plans:
        plan = make_plan(forward, name)
        train, score = compile_train(forward, plan, "adam"), compile_score(forward, (*plan.trainable, *plan.buffers))
        graphs |= {f"train-{name}.onnx": train, f"score-{name}.onnx": score}
        compiled[name] = PlanInfo(
            name, plan.trainable, plan.buffers, plan.bn_mode, plan.channels, f"train-{name}.onnx",
            f"score-{name}.onnx", executed_flops(train, CLASS_COUNT), executed_flops(score, CLASS_COUNT),
        )  # fmt: skip
    weights = tiny_weights()
    manifest = Manifest(
        model=ModelInfo(
            "tiny", sum(v.size for v in weights.values()), tuple("abcde"), (HEIGHT, WIDTH), (0.5,) * 3, (0.25,) * 3,
            head_names(forward),
        ),
        optimizer="adam",
        calibration=Calibration(1e-3, 40.0, tuple(i / 10 for i in range(11)), (0.5,) * CLASS_COUNT, 0.9, 10),
        plans=compiled,
        files={},
        provenance={"created": "2024-01-01T00:00:00+00:00", "note": "naïve ✓"},
    )  # fmt: skip
    return manifest, weights, graphs
