"""The int8 twin of a prefix: what is folded into its integers, and that it computes what the prefix does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edge_sel.engines.int8 import MOST_ERROR, STEPS, fold, integers, relative_error
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import GraphError, PackError
from edge_sel.graphs.int8 import int8_steps
from edge_sel.graphs.ir import read_forward
from edge_sel.graphs.plans import make_plan
from edge_sel.graphs.prefix import Cut, compile_prefix, find_cut
from edge_sel.pack.manifest import Int8Conv, Int8Info, grid
from edge_sel.server.int8 import make_twin
from tests.graphs.conftest import SIZE
from tests.tiny import LAYERS, tiny_model

NORM = ("gamma", "beta", "mean", "variance")


def conv(*, bias="bias", norm=NORM, input_scale=0.02):
    return Int8Conv("y", "weight", bias, norm, 1e-5, input_scale)


def layer(seed, outputs=5, spread=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"weight": (outputs, 3, 3, 3), "bias": (outputs,), "gamma": (outputs,), "beta": (outputs,)}
    values = {name: spread * rng.standard_normal(shape) for name, shape in shapes.items()}
    values |= {"mean": rng.standard_normal(outputs), "variance": rng.uniform(0, 4, outputs)}
    return {name: value.astype(np.float32) for name, value in values.items()}


def folded(values, *, bias=True, norm=True):
    """In float64: kernel and bias of the one convolution that computes both."""
    v = {name: value.astype(np.float64) for name, value in values.items()}
    gain = v["gamma"] / np.sqrt(v["variance"] + 1e-5) if norm else np.ones(len(v["bias"]))
    start = v["bias"] if bias else 0 * v["bias"]
    shift = v["beta"] - v["mean"] * gain if norm else 0.0
    return v["weight"] * gain.reshape(-1, 1, 1, 1), start * gain + shift


@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 50.0]), st.booleans(), st.booleans())
def test_integers_are_within_half_a_step(seed, spread, with_bias, with_norm):
    values = layer(seed, spread=spread)
    given = conv(bias="bias" if with_bias else "", norm=NORM if with_norm else ())
    whole, scale, steps = fold(given, values, 0.02)
    kernel, bias = folded(values, bias=with_bias, norm=with_norm)
    assert whole.dtype == np.int8 and scale.dtype == np.float32 and steps.dtype == np.int32
    assert whole.min() >= -STEPS and (scale > 0).all()
    rows = scale.reshape(-1, 1, 1, 1).astype(np.float64)
    assert (np.abs(whole * rows - kernel) <= 0.5001 * rows).all()
    assert (
        np.abs(steps * (scale.astype(np.float64) * 0.02) - bias) <= 0.5001 * scale * 0.02 + 1e-9 * np.abs(bias)
    ).all()


def test_each_channel_uses_its_whole_range():
    values = layer(0) | {"gamma": np.array([1, -1, 1e-3, -50, 7], np.float32)}
    whole, _, _ = fold(conv(), values, 0.02)
    assert np.abs(whole).reshape(5, -1).max(1).tolist() == [STEPS] * 5


def test_a_negative_gamma_turns_the_signs():
    values = layer(1)
    turned = values | {"gamma": -values["gamma"], "beta": -values["beta"]}
    (a, s, b), (c, t, d) = (fold(conv(), v, 0.02) for v in (values, turned))
    np.testing.assert_array_equal(a, -c)
    np.testing.assert_array_equal(s, t)
    np.testing.assert_array_equal(b, -d)


@pytest.mark.parametrize("beta", [0.0, 3.0, -2e4, 1e-30])
def test_a_channel_without_weights_keeps_its_bias(beta):
    values = layer(2)
    for name, value in (("gamma", 0.0), ("beta", beta)):
        values[name] = values[name].copy()
        values[name][3] = value
    whole, scale, steps = fold(conv(), values, 0.02)
    assert not whole[3].any() and np.isfinite(scale).all() and scale[3] > 0
    assert float(steps[3]) * float(scale[3]) * 0.02 == pytest.approx(beta, rel=1e-6, abs=1e-20)


def test_a_bias_beyond_all_weights_has_room():
    values = layer(3) | {"beta": np.full(5, 1e9, np.float32)}
    _, scale, steps = fold(conv(), values, 0.02)
    np.testing.assert_allclose(steps * (scale.astype(np.float64) * 0.02), folded(values)[1], rtol=1e-6)


@given(st.floats(-100, 100), st.floats(0, 100))
def test_zero_is_on_the_grid_and_both_ends_are_within_half_a_step(low, width):
    scale, zero = grid(low, low + width)
    assert 0 <= zero <= 255 and scale > 0
    for value in (low, low + width, 0.0):
        assert abs((min(max(round(value / scale) + zero, 0), 255) - zero) * scale - value) <= 0.501 * scale


def test_grids_of_one_sign_and_of_nothing():
    assert grid(1, 255) == (1.0, 0) and grid(-255, -1) == (1.0, 255) and grid(0, 0) == grid(0, 1e-40) == (1.0, 0)


def test_the_relative_error_is_that_of_the_norms():
    a = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(a, a) == 0 and relative_error(a * 1.1, a) == pytest.approx(0.1, rel=1e-5)
    assert np.isnan(relative_error(a * np.nan, a)) and relative_error(a, 0 * a) > 1e6


# Whole prefixes

NETS = ("resnet-c", "resnet-c-small", "simple-cnn", "resnet18-cifar")
PLANS = ("head", "last", "last2")


def noise(count=32, size=SIZE, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def limits(pixels):
    return float(pixels.min()), float(pixels.max())


def twin_of(forward, cut, pixels, weights=None):
    prefix = compile_prefix(forward, cut)
    return prefix, make_twin(forward, cut, prefix, "twin.onnx", weights or forward.initializers, pixels)


def features_of(model, pixels, given=None):
    session = OrtEngine(1).session(model.SerializeToString(), given := given or {})
    return session.run(["features"], {"x": pixels})[0]


def with_values(model, weights):
    """The same graph with other weights inside."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = np.ascontiguousarray(weights[tensor.name]).tobytes()
    return changed


@pytest.mark.parametrize(("name", "plan"), [(n, p) for n in NETS for p in PLANS if (n, p) != ("simple-cnn", "last2")])
def test_the_twin_gives_the_features_of_the_prefix(forward_of, name, plan):
    _, forward = forward_of(name)
    cut = find_cut(forward, make_plan(forward, plan))
    prefix, twin = twin_of(forward, cut, noise())
    assert sum(node.op_type == "QLinearConv" for node in twin.graph.graph.node) == len(twin.info.convolutions) > 0
    assert not any(node.op_type in ("Conv", "BatchNormalization") for node in twin.graph.graph.node)
    others = noise(seed=1)
    expected = features_of(prefix, others)
    found = features_of(
        twin.graph, others, integers(replace(twin.info, constants=()), forward.initializers, limits(others))
    )
    assert found.shape == expected.shape and 0 < relative_error(found, expected) < MOST_ERROR
    kept = sum(forward.initializers[name].nbytes for name in twin.info.constants)
    assert len(twin.graph.SerializeToString()) - kept < 20_000, "no weight of a convolution is inside"


def test_the_twin_takes_in_other_statistics(forward_of):
    """Kernels and statistics ten times as large give the same map; statistics alone another, and the twin the same."""
    _, forward = forward_of("resnet-c-small")
    cut = find_cut(forward, make_plan(forward, "last"))
    prefix, twin = twin_of(forward, cut, noise())
    weights, rng = dict(forward.initializers), np.random.default_rng(0)
    for at in twin.info.convolutions:
        *_, mean, variance = at.norm
        factor = np.exp(rng.uniform(-2, 2, len(weights[mean]))).astype(np.float32)
        weights[at.weight] = weights[at.weight] * factor.reshape(-1, 1, 1, 1)
        weights[mean] = weights[mean] * factor + 0.05 * factor
        weights[variance] = weights[variance] * factor**2
    expected = features_of(with_values(prefix, weights), noise())
    found = features_of(twin.graph, noise(), integers(twin.info, weights, limits(noise())))
    stale = features_of(twin.graph, noise(), integers(twin.info, forward.initializers, limits(noise())))
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
    prefix, twin = twin_of(forward, until(forward, end), pixels)
    found = features_of(twin.graph, pixels, integers(twin.info, forward.initializers, limits(pixels)))
    assert relative_error(found, features_of(prefix, pixels)) == pytest.approx(twin.info.relative_error, abs=1e-6)
    assert len(twin.info.convolutions) == (1 if end == "deep" else 2)


def test_a_normalisation_behind_the_cut_is_not_taken_in():
    forward = hand_made(*CHAINS["norm"])
    (step,) = int8_steps(forward, until(forward, "wide"))
    assert step.norm is None and step.output == "wide"
    assert int8_steps(forward, until(forward, "deep"))[0].norm is not None


UNSUPPORTED = {
    "Sigmoid": [helper.make_node("Sigmoid", ["wide"], ["deep"])],
    "BatchNormalization": [
        helper.make_node("Relu", ["wide"], ["r"]), helper.make_node("BatchNormalization", ["r", *BN], ["deep"], "norm")
    ],
    "Add": [helper.make_node("Add", ["wide", "low"], ["deep"])],
}  # fmt: skip


@pytest.mark.parametrize("operator", UNSUPPORTED)
def test_no_twin_with_another_operator(operator):
    forward = hand_made(*UNSUPPORTED[operator])
    with pytest.raises(GraphError, match=f"operator {operator} is not supported"):
        int8_steps(forward, until(forward, "convolved"))
    int8_steps(forward, until(forward, "deep"))  # behind the last convolution all is in floating point


def test_a_network_of_other_parts_has_no_twin(net_of):
    _, forward = net_of("PartsNet")
    with pytest.raises(GraphError, match="is not supported"):
        int8_steps(forward, find_cut(forward, make_plan(forward, "head")))


def test_only_the_first_convolution_of_a_transformer_is_in_integers(net_of):
    _, forward = net_of("SmallTransformer")
    steps = int8_steps(forward, find_cut(forward, make_plan(forward, "head")))
    assert sum(step.integers for step in steps) == 1


def test_a_prefix_without_a_convolution_has_none():
    forward = read_forward(tiny_model())
    with pytest.raises(GraphError, match="no convolution"):
        int8_steps(forward, Cut("x", (3, 6, 8), ()))


@pytest.mark.parametrize(
    "change", [{"weight": "other"}, {"norm": ("gamma", "beta", "mean", "other")}, {"bias": "long"}]
)
def test_weights_that_are_not_there_are_a_pack_error(change):
    values = layer(0) | {"long": np.zeros(9, np.float32)}
    info = Int8Info("twin.onnx", 0.0, (replace(conv(), **change),))
    with pytest.raises(PackError, match="weights that are not there"):
        integers(info, values, (-1, 1))
