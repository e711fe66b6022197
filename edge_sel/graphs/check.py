"""Check one gradient rule on one node against a numerical derivative in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edge_sel.graphs.backward import Differentiator
from edge_sel.graphs.builder import prune
from edge_sel.graphs.ir import IR_VERSION, OPSET, Forward, Node, Shape
from edge_sel.graphs.shapes import shape_of


def rule_error(
    node: Node,
    arrays: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    *,
    bn_mode: str = "frozen",
    rng: np.random.Generator,
    step: float = 1e-6,
) -> float:
    """Largest relative error, over the wanted inputs, of the rule's directional derivative.

    For ``s = Σ y·d`` with a random d, compares ``⟨∂s/∂x, u⟩`` along a random u with the central difference
    ``(s(x + hu) − s(x − hu)) / 2h``. Evaluated by ONNX's reference implementation, so no engine is involved.

    Args:
        node: one operator with a rule.
        arrays: a value for every input of the node, float64 where differentiable.
        wanted: inputs to differentiate by.
        bn_mode: form of batch normalisation.
        rng: source of the random directions.
        step: h of the central difference.
    """
    names = [*dict.fromkeys(name for name in node.inputs if name)]
    arrays = {name: _double(value) for name, value in arrays.items()}
    tape, gradients = differentiate_node(node, arrays, wanted, bn_mode)
    value = _evaluator(tape, names, node.outputs[:1])
    gradient = _evaluator(tape, [*names, "dy"], [gradients[name] for name in wanted])
    feeds = {name: arrays[name] for name in names}
    if bn_mode == "batch":
        feeds["bn_momentum"] = np.float64(0.1)
    d = rng.standard_normal(value.run(None, feeds)[0].shape)
    analytic = dict(zip(wanted, gradient.run(None, {**feeds, "dy": d}), strict=True))
    worst = 0.0
    for name in wanted:
        u = rng.standard_normal(arrays[name].shape)
        ahead, behind = (
            float((value.run(None, {**feeds, name: arrays[name] + sign * step * u})[0] * d).sum()) for sign in (1, -1)
        )
        numeric = (ahead - behind) / (2 * step)
        along = float((analytic[name] * u).sum())
        if analytic[name].shape != arrays[name].shape:
            return float("inf")
        worst = max(worst, abs(along - numeric) / max(1.0, abs(numeric), abs(along)))
    return worst


def differentiate_node(
    node: Node, arrays: Mapping[str, np.ndarray], wanted: Sequence[str], bn_mode: str
) -> tuple[Differentiator, dict[str, str]]:
    """Emit the node and its gradient from an input ``dy``; returns the gradient tensor of each wanted input."""
    constants = {name: np.asarray(arrays[name]) for name in node.inputs if name and name not in wanted}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
        if name not in constants
    ]
    proto = helper.make_node(node.op, list(node.inputs), list(node.outputs), **node.attributes)
    out = helper.make_empty_tensor_value_info(node.outputs[0])
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([proto], "one", inputs, [out], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    (made,) = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    shapes: dict[str, Shape] = {name: array.shape for name, array in arrays.items()}
    shapes[made.name] = shape_of(made.type)
    d = Differentiator(
        Forward((node,), constants, shapes, inputs[0].name, made.name), wanted, bn_mode=bn_mode, channels={}
    )
    d.emit_forward()
    return d, d.emit_backward("dy", wanted)


def _evaluator(tape: Differentiator, inputs: Sequence[str], outputs: Sequence[str]) -> ReferenceEvaluator:
    """Of the nodes that these outputs need, in float64."""
    graph = helper.make_graph(
        tape.nodes,
        "check",
        [helper.make_empty_tensor_value_info(name) for name in (*inputs, "bn_momentum")],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(_double(value), name) for name, value in tape.constants.items()],
    )
    prune(graph, outputs)
    for proto in graph.node:
        if proto.op_type == "Cast" and proto.attribute[0].i == TensorProto.FLOAT:
            proto.attribute[0].i = TensorProto.DOUBLE
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return ReferenceEvaluator(model, new_ops=[Erf])


class Erf(OpRun):  # type: ignore[misc]
    """ONNX's own reference rounds to float32."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array
