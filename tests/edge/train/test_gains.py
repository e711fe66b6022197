"""What a stage is expected to gain, from the pack's table of gains; and how far a promise is believed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.train.auto_schedule import DOUBT, GENERIC, expected_gain, trust
from edge_sel.pack.manifest import GainRow
from edge_sel.pack.plan_kinds import plan_kind

ROW = st.builds(GainRow, st.just("body"), st.integers(1, 10**6), st.floats(-1.0, 10.0), st.floats(-1.0, 1.0))
TABLE = st.lists(ROW, min_size=1, max_size=12)
EXCESS = st.floats(-1e3, 1e3) | st.sampled_from([math.inf, math.nan])
VISITS = st.floats(0.0, 1e9)


def body(excess, gain, *, visits=500):
    return GainRow("body", visits, excess, gain)


def gain(*rows, kind="body", excess=0.0, visits=500):
    return expected_gain(rows, kind, excess=excess, visits=visits)


@given(TABLE, EXCESS, VISITS)
def test_it_lies_between_the_least_and_the_largest_gain_of_the_table(rows, excess, visits):
    gains = [row.gain for row in rows]
    assert min(gains) - 1e-9 <= gain(*rows, excess=excess, visits=visits) <= max(gains) + 1e-9


@given(ROW, EXCESS, VISITS)
def test_a_row_that_is_alone_is_true_everywhere(row, excess, visits):
    assert gain(row, excess=excess, visits=visits) == pytest.approx(row.gain)


def test_at_its_place_a_row_outweighs_those_far_away():
    rows = [body(0.0, 0.01), body(2.0, 0.2), body(0.0, 0.1, visits=500 * 2**9)]
    assert gain(*rows) == pytest.approx(0.01, abs=1e-6)
    assert gain(*rows, excess=2.0) == pytest.approx(0.2, abs=1e-6)
    assert gain(*rows, visits=500 * 2**9) == pytest.approx(0.1, abs=1e-6)


def test_in_the_middle_of_two_rows_it_is_their_mean():
    assert gain(body(0.0, 0.0), body(0.2, 0.1), excess=0.1) == pytest.approx(0.05)
    assert gain(body(0.0, 0.0, visits=100), body(0.0, 0.1, visits=400), visits=200) == pytest.approx(0.05)


@pytest.mark.parametrize(("excess", "nearest"), [(-1e6, 0.01), (1e6, 0.2)])
def test_far_from_every_row_the_nearest_is_true(excess, nearest):
    """Where every weight would be 0 in floating point."""
    assert gain(body(0.0, 0.01), body(2.0, 0.2), excess=excess) == pytest.approx(nearest)


@pytest.mark.parametrize("excess", [math.inf, math.nan])
def test_a_loss_that_is_no_number_counts_as_the_largest_of_the_table(excess):
    assert gain(body(0.0, 0.01), body(2.0, 0.2), excess=excess) == gain(body(0.0, 0.01), body(2.0, 0.2), excess=2.0)


def test_rows_of_another_kind_tell_nothing():
    rows = [GainRow("head", 500, 0.0, 0.5), body(0.0, 0.1)]
    assert gain(*rows, kind="head") == 0.5 and gain(*rows) == 0.1
    assert gain(rows[0]) == 0.0 == gain()


@pytest.mark.parametrize("factor", [2, 16])
def test_fewer_and_more_visits_by_the_same_factor_are_equally_far(factor):
    rows = [body(0.0, 0.0, visits=500 / factor), body(0.0, 0.1, visits=500 * factor)]
    assert gain(*rows) == pytest.approx(0.05)
    assert gain(*rows, visits=400) < 0.05 < gain(*rows, visits=600)


@given(st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_without_a_table_a_higher_loss_promises_no_less(one, other):
    for kind, visits in (("head", 1500), ("body", 750), ("body", 2250)):
        less, more = (gain(*GENERIC, kind=kind, visits=visits, excess=x) for x in sorted((one, other)))
        assert 0 <= less <= more + 1e-12


def test_of_which_kind_a_plan_is():
    assert {name: plan_kind(name).gains for name in ("bn", "closed_form", "head", "ridge", "full", "last-c25", "first")} == {
        "bn": None, "closed_form": None, "head": "head", "ridge": "head", "full": "body", "last-c25": "body", "first": "body",
    }  # fmt: skip


# How far a promise is believed

STAGES = st.lists(st.tuples(st.floats(-0.1, 0.5), st.floats(-0.5, 0.5)), max_size=5)


@given(STAGES)
def test_trust_is_a_share_and_does_not_ask_for_the_order(stages):
    assert 0 <= trust(stages) <= 1 and trust(stages[::-1]) == pytest.approx(trust(stages))


@given(st.lists(st.floats(0.0, 0.5), max_size=5), st.floats(0.0, 0.5))
def test_promises_that_were_kept_are_believed_whole(promises, more):
    assert trust([(promise, promise + more) for promise in promises]) == pytest.approx(1.0)


@given(STAGES, st.floats(0.001, 0.5))
def test_a_promise_that_was_broken_never_adds_to_trust(stages, promise):
    assert trust([*stages, (promise, 0.0)]) <= trust(stages)


def test_a_promise_within_the_doubt_is_hardly_held_against_it():
    assert trust([(DOUBT / 10, 0.0)]) > 0.9 and trust([(10 * DOUBT, 0.0)]) < 0.1
