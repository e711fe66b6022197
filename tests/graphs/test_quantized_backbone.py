"""The quantized variant of a backbone computes what the backbone does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import GraphError
from edge_sel.graphs.backbone import Cut, compile_backbone, find_cut, quantized_steps
from edge_sel.graphs.plans import make_plan
from edge_sel.graphs.read import read_forward
from edge_sel.quantize import MOST_ERROR, quantize_backbone, relative_error
from edge_sel.server.compile_plans import make_quantized_variant
from tests.graphs.conftest import SIZE, large_ones_slow
from tests.tiny import LAYERS, tiny_model

NETS = ("resnet-c", "resnet-c-small", "simple-cnn", "resnet18-cifar")
PLANS = ("head", "last", "last2")


def noise(count=32, size=SIZE, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def limits(pixels):
    return float(pixels.min()), float(pixels.max())


def quantized_of(forward, cut, pixels, weights=None):
    backbone = compile_backbone(forward, cut)
    return backbone, make_quantized_variant(
        forward, cut, backbone, "quantized.onnx", weights or forward.initializers, pixels
    )


def features_of(model, pixels, given=None):
    session = OrtEngine(1).session(model.SerializeToString(), given := given or {}, int8=True)
    return session.run(["features"], {"x": pixels})[0]


def with_values(model, weights):
    """The same graph with other weights inside."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = np.ascontiguousarray(weights[tensor.name]).tobytes()
    return changed


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "plan"), large_ones_slow((n, p) for n in NETS for p in PLANS if (n, p) != ("simple-cnn", "last2"))
)
def test_the_quantized_variant_gives_the_features_of_the_backbone(net_of, name, plan):
    _, forward = net_of(name)
    cut = find_cut(forward, make_plan(forward, plan))
    backbone, quantized = quantized_of(forward, cut, noise())
    assert (
        sum(node.op_type == "QLinearConv" for node in quantized.graph.graph.node)
        == len(quantized.info.convolutions)
        > 0
    )
    assert not any(node.op_type in ("Conv", "BatchNormalization") for node in quantized.graph.graph.node)
    others = noise(seed=1)
    expected = features_of(backbone, others)
    found = features_of(
        quantized.graph,
        others,
        quantize_backbone(replace(quantized.info, constants=()), forward.initializers, limits(others)),
    )
    assert found.shape == expected.shape and 0 < relative_error(found, expected) < MOST_ERROR
    kept = sum(forward.initializers[name].nbytes for name in quantized.info.constants)
    assert len(quantized.graph.SerializeToString()) - kept < 20_000, "no weight of a convolution is inside"


def test_the_quantized_variant_takes_in_other_statistics(net_of):
    """Kernels and statistics ten times as large give the same map; statistics alone another, and the variant the same."""
    _, forward = net_of("resnet-c-small")
    cut = find_cut(forward, make_plan(forward, "last"))
    backbone, quantized = quantized_of(forward, cut, noise())
    weights, rng = dict(forward.initializers), np.random.default_rng(0)
    for at in quantized.info.convolutions:
        *_, mean, variance = at.norm
        factor = np.exp(rng.uniform(-2, 2, len(weights[mean]))).astype(np.float32)
        weights[at.weight] = weights[at.weight] * factor.reshape(-1, 1, 1, 1)
        weights[mean] = weights[mean] * factor + 0.05 * factor
        weights[variance] = weights[variance] * factor**2
    expected = features_of(with_values(backbone, weights), noise())
    found = features_of(quantized.graph, noise(), quantize_backbone(quantized.info, weights, limits(noise())))
    stale = features_of(
        quantized.graph, noise(), quantize_backbone(quantized.info, forward.initializers, limits(noise()))
    )
    assert relative_error(found, expected) < MOST_ERROR < relative_error(stale, expected)


WIDE = helper.make_node("Conv", ["x", "wide.weight"], ["wide"], "wide", pads=[1, 1, 1, 1])
EXTRA = {
    "wide.weight": np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32),
    "low": np.array(-0.5, np.float32),
    "high": np.array(1.5, np.float32),
    **{f"bn.{name}": np.array([0.5, 1, -2], np.float32) for name in ("gamma", "beta", "mean")},
    "bn.variance": np.array([0.5, 1, 2], np.float32),
}
BN = ["bn.gamma", "bn.beta", "bn.mean", "bn.variance"]


def hand_made(*between):
    """A convolution, these nodes from "wide" to "deep", another convolution."""
    return read_forward(tiny_model([WIDE, *between, replace_input(LAYERS[0]), *LAYERS[1:]], extra=EXTRA))


def replace_input(node):
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.input[0] = "deep"
    return changed


def until(forward, tensor):
    shape = tuple(size for size in forward.shape(tensor)[1:])
    return Cut(tensor, shape, tuple(forward.initializers))


CHAINS = {
    "clip": [helper.make_node("Clip", ["wide", "low", "high"], ["deep"])],
    "relu": [helper.make_node("Relu", ["wide"], ["deep"])],
    "norm": [helper.make_node("BatchNormalization", ["wide", *BN], ["deep"], "norm")],
    "identity": [helper.make_node("Identity", ["wide"], ["deep"])],
    "max": [helper.make_node("MaxPool", ["wide"], ["deep"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
    "average": [helper.make_node("AveragePool", ["wide"], ["deep"], kernel_shape=[2, 2])],
    "sum with the image": [helper.make_node("Add", ["wide", "x"], ["deep"])],
    "two readers": [helper.make_node("Relu", ["wide"], ["r"]), helper.make_node("Add", ["wide", "r"], ["deep"])],
    "relu of a sum": [helper.make_node("Add", ["wide", "x"], ["s"]), helper.make_node("Relu", ["s"], ["deep"])],
    "sum of a sum": [
        helper.make_node("Add", ["wide", "wide"], ["s"]), helper.make_node("Clip", ["s", "low", "high"], ["c"]),
        helper.make_node("Add", ["s", "c"], ["deep"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("end", ["convolved", "positive", "deep"])
@pytest.mark.parametrize("chain", CHAINS)
def test_every_supported_operator_computes_the_same(chain, end):
    forward = hand_made(*CHAINS[chain])
    pixels = np.random.default_rng(0).standard_normal((16, *forward.shape("x")[1:])).astype(np.float32)
    backbone, quantized = quantized_of(forward, until(forward, end), pixels)
    found = features_of(
        quantized.graph, pixels, quantize_backbone(quantized.info, forward.initializers, limits(pixels))
    )
    assert relative_error(found, features_of(backbone, pixels)) == pytest.approx(
        quantized.info.relative_error, abs=1e-6
    )
    assert len(quantized.info.convolutions) == (1 if end == "deep" else 2)


def test_a_normalisation_behind_the_cut_is_not_taken_in():
    forward = hand_made(*CHAINS["norm"])
    (step,) = quantized_steps(forward, until(forward, "wide"))
    assert step.norm is None and step.output == "wide"
    assert quantized_steps(forward, until(forward, "deep"))[0].norm is not None


UNSUPPORTED = {
    "Sigmoid": [helper.make_node("Sigmoid", ["wide"], ["deep"])],
    "BatchNormalization": [
        helper.make_node("Relu", ["wide"], ["r"]), helper.make_node("BatchNormalization", ["r", *BN], ["deep"], "norm")
    ],
    "Add": [helper.make_node("Add", ["wide", "low"], ["deep"])],
}  # fmt: skip


@pytest.mark.parametrize("operator", UNSUPPORTED)
def test_no_quantized_variant_with_another_operator(operator):
    forward = hand_made(*UNSUPPORTED[operator])
    with pytest.raises(GraphError, match=f"operator {operator} is not supported"):
        quantized_steps(forward, until(forward, "convolved"))
    quantized_steps(forward, until(forward, "deep"))  # behind the last convolution all is in floating point


def test_a_network_of_other_parts_has_no_quantized_variant(net_of):
    _, forward = net_of("PartsNet")
    with pytest.raises(GraphError, match="is not supported"):
        quantized_steps(forward, find_cut(forward, make_plan(forward, "head")))


def test_only_the_first_convolution_of_a_transformer_is_in_integers(net_of):
    _, forward = net_of("SmallTransformer")
    steps = quantized_steps(forward, find_cut(forward, make_plan(forward, "head")))
    assert sum(step.integers for step in steps) == 1


def test_a_backbone_without_a_convolution_has_none():
    forward = read_forward(tiny_model())
    with pytest.raises(GraphError, match="no convolution"):
        quantized_steps(forward, Cut("x", (3, 6, 8), ()))
