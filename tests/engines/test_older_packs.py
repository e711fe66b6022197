"""Packs whose steps have an input that is no longer compiled: they are read, and they train as before."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Hyper
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.builtin import builtin_pack
from edge_sel.pack.manifest import RETIRED_SCALARS
from edge_sel.pack.reader import Pack, open_pack
from tests.engines.arrays import assert_same
from tests.pack.hostile import with_graph, write_zip

PLAN = "full"


def decay(model: onnx.ModelProto) -> None:
    """As steps were compiled once: ``momentum · u + (g + weight_decay · w)``."""
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("weight_decay", TensorProto.FLOAT, []))
    for name in [out.name for out in graph.output if out.name.startswith("new::momentum::")]:
        (sum_,) = [node for node in graph.node if name in node.output]
        weight, place = name.removeprefix("new::momentum::"), list(graph.node).index(sum_)
        graph.node.insert(place, helper.make_node("Mul", [weight, "weight_decay"], [f"decay::{weight}"]))
        graph.node.insert(
            place + 1, helper.make_node("Add", [sum_.input[1], f"decay::{weight}"], [f"decayed::{weight}"])
        )
        sum_.input[1] = f"decayed::{weight}"


def after_three_steps(pack: Pack, batch: Batch) -> Arrays:
    trainer = OrtEngine(1).trainer(pack, PLAN, pack.weights())
    for _ in range(3):
        trainer.step(batch, Hyper(learning_rate=0.05))
    return trainer.state()


def test_a_step_that_asks_for_weight_decay_gets_none(tmp_path, batch):
    old = open_pack(write_zip(tmp_path / "old.edgepack", with_graph(f"train-{PLAN}.onnx", decay)))
    asked = onnx.load_model_from_string(old.graph(old.plan(PLAN).train)).graph.input
    assert RETIRED_SCALARS.keys() <= {given.name for given in asked}
    assert_same(after_three_steps(old, batch), after_three_steps(builtin_pack(), batch))
