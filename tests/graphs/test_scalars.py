"""Scalars beside tensors that end in axes of one element."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edge_sel.graphs.builder import Builder, spread_scalars


def graph(shape, *, spread: bool) -> onnx.ModelProto:
    b = Builder()
    inside = b.op("Where", b.op("Greater", b.op("Abs", "w"), "gamma"), "w", b.scalar(0.0))
    b.op("Sub", b.op("Mul", inside, b.op("Squeeze", "lr")), b.floats([0.5]), name="y")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
              for name, dims in (("w", shape), ("gamma", []), ("lr", [1, 1]))]  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    if spread:
        return b.model(inputs, outputs, {}, "scalars")
    made = helper.make_graph(
        b.nodes, "plain", inputs, outputs, [onnx.numpy_helper.from_array(v, n) for n, v in b.constants.items()]
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def ranks(model: onnx.ModelProto) -> set[int]:
    """Of what the elementwise operators take."""
    known = onnx.shape_inference.infer_shapes(model).graph
    values = {v.name: len(v.type.tensor_type.shape.dim) for v in (*known.value_info, *known.input)}
    values |= {tensor.name: len(tensor.dims) for tensor in known.initializer}
    return {values[name] for node in known.node if node.op_type in ("Mul", "Sub", "Where", "Greater")
            for name in node.input}  # fmt: skip


@pytest.mark.parametrize("shape", [(64, 32, 1, 1), ("batch", 300, 1)], ids=str)
def test_scalars_get_the_rank_of_the_tensor_and_nothing_else_changes(shape):
    rng = np.random.default_rng(0)
    sizes = [3 if isinstance(size, str) else size for size in shape]
    feeds = {
        "w": rng.standard_normal(sizes).astype(np.float32),
        "gamma": np.array(0.3, np.float32),
        "lr": np.full((1, 1), 0.1, np.float32),
    }
    found = []
    for spread in (False, True):
        model = graph(shape, spread=spread)
        onnx.checker.check_model(model, full_check=True)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found.append(session.run(None, feeds)[0])
        assert ranks(model) == ({len(shape)} if spread else {0, 1, len(shape)})
    np.testing.assert_array_equal(*found)
    assert len({tensor.name for tensor in model.graph.initializer}) == len(model.graph.initializer)


@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (64, 32), (4, 8, 1, 1)], ids=str)
def test_what_is_fast_or_small_stays_as_it_is(shape):
    model = graph(shape, spread=False)
    before = model.SerializeToString(deterministic=True)
    spread_scalars(model)
    assert model.SerializeToString(deterministic=True) == before
