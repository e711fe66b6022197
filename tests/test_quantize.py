"""What is folded into the integers of a quantized backbone, and the grids they stand on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.errors import PackError
from edge_sel.pack.manifest import Int8Conv, Int8Info
from edge_sel.quantize import STEPS, fold_batch_norm, grid_of, quantize_backbone, relative_error

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
    whole, scale, steps = fold_batch_norm(given, values, 0.02)
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
    whole, _, _ = fold_batch_norm(conv(), values, 0.02)
    assert np.abs(whole).reshape(5, -1).max(1).tolist() == [STEPS] * 5


def test_a_negative_gamma_turns_the_signs():
    values = layer(1)
    turned = values | {"gamma": -values["gamma"], "beta": -values["beta"]}
    (a, s, b), (c, t, d) = (fold_batch_norm(conv(), v, 0.02) for v in (values, turned))
    np.testing.assert_array_equal(a, -c)
    np.testing.assert_array_equal(s, t)
    np.testing.assert_array_equal(b, -d)


@pytest.mark.parametrize("beta", [0.0, 3.0, -2e4, 1e-30])
def test_a_channel_without_weights_keeps_its_bias(beta):
    values = layer(2)
    for name, value in (("gamma", 0.0), ("beta", beta)):
        values[name] = values[name].copy()
        values[name][3] = value
    whole, scale, steps = fold_batch_norm(conv(), values, 0.02)
    assert not whole[3].any() and np.isfinite(scale).all() and scale[3] > 0
    assert float(steps[3]) * float(scale[3]) * 0.02 == pytest.approx(beta, rel=1e-6, abs=1e-20)


def test_a_bias_beyond_all_weights_has_room():
    values = layer(3) | {"beta": np.full(5, 1e9, np.float32)}
    _, scale, steps = fold_batch_norm(conv(), values, 0.02)
    np.testing.assert_allclose(steps * (scale.astype(np.float64) * 0.02), folded(values)[1], rtol=1e-6)


@given(st.floats(-100, 100), st.floats(0, 100))
def test_zero_is_on_the_grid_and_both_ends_are_within_half_a_step(low, width):
    scale, zero = grid_of((low, low + width))
    assert 0 <= zero <= 255 and scale > 0
    for value in (low, low + width, 0.0):
        assert abs((min(max(round(value / scale) + zero, 0), 255) - zero) * scale - value) <= 0.501 * scale


def test_grids_of_one_sign_and_of_nothing():
    assert grid_of((1, 255)) == (1.0, 0) and grid_of((-255, -1)) == (1.0, 255)
    assert grid_of((0, 0)) == grid_of((0, 1e-40)) == (1.0, 0)


def test_the_relative_error_is_that_of_the_norms():
    a = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(a, a) == 0 and relative_error(a * 1.1, a) == pytest.approx(0.1, rel=1e-5)
    assert np.isnan(relative_error(a * np.nan, a)) and relative_error(a, 0 * a) > 1e6


@pytest.mark.parametrize(
    "change", [{"weight": "other"}, {"norm": ("gamma", "beta", "mean", "other")}, {"bias": "long"}]
)
def test_weights_that_are_not_there(change):
    values = layer(0) | {"long": np.zeros(9, np.float32)}
    info = Int8Info("quantized.onnx", 0.0, (replace(conv(), **change),))
    with pytest.raises(PackError, match="weights that are not there"):
        quantize_backbone(info, values, (-1, 1))
