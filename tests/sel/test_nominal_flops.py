import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.sel.nominal_flops import nominal_flops

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
