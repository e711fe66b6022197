import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edge_sel.errors import UsageError
from edge_sel.sel import guilt
from edge_sel.sel.guilt import nominal_flops

gradients = arrays(np.float64, array_shapes(max_dims=4, max_side=5), elements=st.floats(-10, 10))


def test_gamma_is_the_percentile_of_all_magnitudes_together(xp):
    g = [xp.asarray([[-4.0, 1.0]]), xp.asarray([2.0, -3.0, 0.0])]
    assert float(guilt.calibrate_gamma(g, 50)) == 2.0
    # 40 % of the way from 0 to 4 in 4 gaps is 1.6, between the second and the third value.
    assert float(guilt.calibrate_gamma(g, 40)) == pytest.approx(1.6)
    assert float(guilt.calibrate_gamma(g, 0)) == 0.0
    assert float(guilt.calibrate_gamma(g, 100)) == 4.0


@given(g=gradients, p=st.floats(0, 100))
def test_gamma_is_numpys_percentile(xp, g, p):
    assert float(guilt.calibrate_gamma([xp.asarray(g)], p)) == pytest.approx(np.percentile(np.abs(g), p), abs=1e-12)


def test_gamma_stays_an_array(xp):
    gamma = guilt.calibrate_gamma([xp.asarray([1.0, 2.0], dtype=xp.float32)], 50)
    assert gamma.shape == ()
    assert gamma.dtype == xp.float32


def test_gamma_needs_something_to_look_at(xp):
    with pytest.raises(ValueError, match="at least one"):
        guilt.calibrate_gamma([], 40)
    with pytest.raises(ValueError, match="at least one"):
        guilt.calibrate_gamma([xp.zeros((0, 3))], 40)
    with pytest.raises(UsageError, match="percentile"):
        guilt.calibrate_gamma([xp.zeros(3)], 101)


def test_the_published_decay(xp):
    assert [guilt.decayed_gamma(1.0, s, 5) for s in range(5)] == pytest.approx([1.0, 0.94, 0.88, 0.82, 0.76])
    assert float(guilt.decayed_gamma(xp.asarray(2.0), 4, 5)) == pytest.approx(1.52)
    with pytest.raises(ValueError, match="not one of 5"):
        guilt.decayed_gamma(1.0, 5, 5)


def test_magnitudes_above_gamma_survive(xp):
    mask = guilt.element_mask(xp.asarray([[-2.0, 1.0], [0.5, math.nan]]), 1.0)
    assert np.asarray(mask).tolist() == [[True, False], [False, False]]


@given(g=gradients, low=st.floats(0, 10), more=st.floats(0, 5))
def test_the_mask_shrinks_as_gamma_grows(xp, g, low, more):
    wide, narrow = (np.asarray(guilt.element_mask(xp.asarray(g), gamma)) for gamma in (low, low + more))
    assert not (narrow & ~wide).any()


@given(g=arrays(np.float64, st.integers(1, 60), elements=st.floats(-10, 10), unique=True), p=st.floats(0, 100))
def test_at_calibration_gamma_freezes_its_percentile(xp, g, p):
    # Up to the values at the percentile itself: the README's 95 % sparsity cannot come from p40.
    g = np.abs(g)
    kept = float(guilt.kept_fraction(guilt.element_mask(xp.asarray(g), guilt.calibrate_gamma([xp.asarray(g)], p))))
    assert kept == pytest.approx(1 - p / 100, abs=2 / len(g) + 1e-9)


def test_kept_fraction_weighs_by_size(xp):
    masks = [xp.asarray([True, False, False]), xp.asarray([[True]])]
    assert float(guilt.kept_fraction(*masks)) == 0.5
    assert float(guilt.kept_fraction(xp.asarray([True]))) == 1.0
    assert float(guilt.kept_fraction(xp.zeros((0, 2), dtype=xp.bool))) == 0.0


def test_the_guiltiest_win_and_of_equals_the_lower_index(xp):
    values = xp.asarray([1.0, 5.0, 3.0, 5.0, math.nan, 5.0])
    assert np.asarray(guilt.guilty_channels(values, 2)).tolist() == [1, 3]
    assert np.asarray(guilt.guilty_channels(values, 4)).tolist() == [1, 2, 3, 5]
    assert np.asarray(guilt.guilty_channels(values, 99)).tolist() == [0, 1, 2, 3, 4, 5]
    assert guilt.guilty_channels(values, 0).shape == (0,)
    assert guilt.guilty_channels(values, 2).dtype == xp.int64
    with pytest.raises(ValueError, match="-1"):
        guilt.guilty_channels(values, -1)


@given(values=arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 5).map(round)), k=st.integers(0, 50))
def test_nobody_outside_is_guiltier(xp, values, k):
    chosen = np.asarray(guilt.guilty_channels(xp.asarray(values), k))
    assert len(chosen) == min(k, len(values))
    assert (np.diff(chosen) > 0).all()
    rest = np.setdiff1d(np.arange(len(values)), chosen)
    if len(chosen) and len(rest):
        assert values[chosen].min() >= values[rest].max()
        tied = values[chosen].min()
        # Of the equals at the border the lower indices are in.
        assert np.all(chosen[values[chosen] == tied].max() < rest[values[rest] == tied])


RESNET18 = 11_173_962


def test_the_published_figures():
    assert nominal_flops(RESNET18, 50_000 * 30) == 33_521_886_000_000
    assert nominal_flops(RESNET18, 50_000 * 30, sparsity=0.8) == 6_704_376_000_000


def test_binary_fractions_lose_no_parameter():
    # 10 * (1 - 0.8) = 1.9999999999999996
    assert nominal_flops(10, 1, sparsity=0.8) == 4


def test_a_percentage_is_refused():
    with pytest.raises(ValueError, match="95"):
        nominal_flops(10, 1, sparsity=95)


@given(p=st.integers(0, 10**8), n=st.integers(0, 10**7), s=st.floats(0, 1), more=st.floats(0, 1))
def test_it_is_additive_in_samples_and_falls_with_sparsity(p, n, s, more):
    assert nominal_flops(p, n, s) + nominal_flops(p, 7, s) == nominal_flops(p, n + 7, s)
    assert 0 <= nominal_flops(p, n, min(1.0, s + more)) <= nominal_flops(p, n, s) <= nominal_flops(p, n)
