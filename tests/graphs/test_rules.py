"""Every gradient rule against a numerical derivative in float64, and against torch autograd through ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from edge_sel.graphs.check import differentiate_node, rule_error
from edge_sel.graphs.ir import IR_VERSION, OPSET, Node
from edge_sel.graphs.rules import RULES
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

    d, gradients = differentiate_node(node, arrays, wanted, case.bn_mode)
    feeds = {**arrays, "dy": dy}
    if case.bn_mode == "batch":
        feeds["bn_momentum"] = np.float32(0.1)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype), a.shape)
        for n, a in feeds.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(gradients[n]) for n in wanted]
    model = d.builder.model(inputs, outputs, {}, "case")
    model.ir_version = IR_VERSION
    assert model.opset_import[0].version == OPSET
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run([gradients[n] for n in wanted], {n: np.asarray(a) for n, a in feeds.items()})
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e.numpy(), rtol=2e-4, atol=2e-4 * float(e.abs().max()))
