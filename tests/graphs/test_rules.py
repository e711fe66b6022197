"""Every gradient rule against a numerical derivative in float64, and against torch autograd through ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from edge_sel.graphs.check import differentiate_node, rule_error
from edge_sel.graphs.ir import IR_VERSION, OPSET, Node
from edge_sel.graphs.rules.registry import RULES
from tests.graphs.cases import CASES, Case


def node_of(case: Case) -> Node:
    return Node(case.op, tuple(f"i{k}" for k in range(len(case.inputs))), ("y",), case.attributes, "case")


def arrays_of(case: Case, dtype: type) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        f"i{k}": rng.uniform(case.low, 2.5, i).astype(dtype) if isinstance(i, tuple) else i
        for k, i in enumerate(case.inputs)
    }


def wanted_of(case: Case) -> list[str]:
    return [f"i{k}" for k in (case.wanted if case.wanted is not None else range(len(case.inputs)))]


class OnDevice:
    """The gradients of one node with ONNX Runtime."""

    def __init__(
        self, node: Node, arrays: dict[str, np.ndarray], dy: np.ndarray, wanted: list[str],
        bn_mode: str = "frozen", threads: int = 1,
    ) -> None:  # fmt: skip
        d, gradients = differentiate_node(node, arrays, wanted, bn_mode)
        self.names = [gradients[name] for name in wanted]
        self.feeds = arrays | {"dy": dy} | ({"bn_momentum": np.float32(0.1)} if bn_mode == "batch" else {})
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), array.shape)
            for name, array in self.feeds.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.names]
        model = d.model(inputs, outputs, {}, "case")
        model.ir_version = IR_VERSION
        assert model.opset_import[0].version == OPSET
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self) -> list[np.ndarray]:
        feeds = {name: np.array(array) for name, array in self.feeds.items()}
        found = self.session.run(self.names, feeds)
        assert all(np.array_equal(feeds[name], array) for name, array in self.feeds.items()), "it wrote over its inputs"
        return list(found)


def test_every_rule_has_a_case():
    assert {case.op for case in CASES} == set(RULES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rule_matches_numerical_derivative(case):
    rng = np.random.default_rng(1)
    arrays, wanted = arrays_of(case, np.float64), wanted_of(case)
    error = rule_error(node_of(case), arrays, wanted, bn_mode=case.bn_mode, rng=rng, step=case.step)
    assert error < case.tolerance


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rule_matches_torch_autograd(case):
    node, arrays, wanted = node_of(case), arrays_of(case, np.float32), wanted_of(case)
    leaves = [torch.tensor(arrays[n], requires_grad=True) for n in wanted]
    y = case.torch(*leaves)
    dy = np.random.default_rng(3).standard_normal(tuple(y.shape)).astype(np.float32)
    expected = torch.autograd.grad(y, leaves, torch.from_numpy(dy))

    got = OnDevice(node, arrays, dy, wanted, case.bn_mode)()
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e.numpy(), rtol=2e-4, atol=2e-4 * float(e.abs().max()))


@pytest.mark.parametrize(
    ("op", "index", "width"),
    [("GatherND", (3000, 1), 1024), ("Gather", (3000,), 1024), ("GatherND", (200_000, 2), 1)],
    ids=["rows of GatherND", "rows of Gather", "numbers"],
)
def test_threads_do_not_overwrite_each_others_sums(op, index, width):
    """Each place is taken often: the sum has whole numbers, so no order of summation changes it."""
    rng = np.random.default_rng(0)
    shape = (7, 9, width) if index[1:] == (2,) else (50, width)
    indices = rng.integers(0, shape[: len(shape) - 1], index)
    arrays = {"x": np.zeros(shape, np.float32), "i": indices}
    dy = np.ones((index[0], width), np.float32)
    gradient = OnDevice(Node(op, ("x", "i"), ("y",), {}, "rows"), arrays, dy, ["x"], threads=2)
    expected = np.zeros(shape, np.float32)
    np.add.at(expected, tuple(indices.T) if op == "GatherND" else indices, dy)
    for _ in range(8):
        np.testing.assert_array_equal(gradient()[0], expected)
