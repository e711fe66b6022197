"""Joules decide through the price of a stage: what this run has shown that a FLOP costs on this device."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_sel.edge.train.auto_schedule import STEP_PRICE, UNPRICED_GAIN, price_j
from edge_sel.pack.manifest import GainRow
from tests.edge.train.histories import (
    AFTER_BN,
    CLEAN,
    ONLY_BODY,
    OUTCOMES,
    SCHEDULE,
    SCHEDULES,
    WORTH,
    decide,
    decisions_of,
    lived,
    ran,
    visits_in,
)  # fmt: skip


def test_a_stage_costs_what_its_work_and_its_looks_did_here():
    """A look at the validation set after every epoch."""
    history = lived(AFTER_BN, j_per_gflop=0.5, look_j=2.0)
    assert price_j(history, 4e9, 1) == pytest.approx(STEP_PRICE * 0.5 * 4 + 2)
    assert price_j(history, 4e9, 3) == pytest.approx(STEP_PRICE * 0.5 * 4 + 6)


def test_a_step_is_priced_by_steps_as_soon_as_there_was_one():
    forward, stepped = ran(0, "bn", (0.7, 1.0), look_j=0.0), ran(1, "full", (0.7, 0.9), look_j=0.0)
    assert price_j(forward, 1e9, 1) == pytest.approx(STEP_PRICE * price_j([*forward, *stepped], 1e9, 1))


def test_only_training_steps_make_the_price():
    """A frozen backbone may have computed in integers, a head in closed form is no graph, loading is no FLOP."""
    (entry,) = lived(AFTER_BN)
    others = {name: {"total_j": 90.0} for name in ("backbone", "score", "fit", "load", "checkpoint", "other")}
    more = entry | {"phases": entry["phases"] | others, "executed_flops_t": 9 * entry["train_flops_t"]}
    assert price_j([more], 1e9, 1) == price_j([entry], 1e9, 1) == pytest.approx(STEP_PRICE + 1)


def test_every_stage_counts_by_its_flops():
    """And the latest look."""
    bn, body = ran(0, "bn", (0.7, 1.0), j_per_gflop=3.0), ran(1, "full", (0.7, 0.9), j_per_gflop=1.0, look_j=9.0)
    assert price_j([*bn, *body], 1e9, 1) == pytest.approx((3.0 + 10.0) / 11 + 9)


def test_a_stage_without_training_steps_changes_no_price():
    """A head in closed form alone: no FLOP of a step, and no joule of one."""
    bn, ridge = ran(0, "bn", (0.7, 1.0)), ran(1, "ridge", (0.7, 1.0))
    (fitted,) = ridge
    fitted |= {"train_flops_t": 0.0, "phases": {"fit": {"total_j": 5.0}, "evaluate": {"total_j": 1.0}}}
    assert price_j([*bn, fitted], 1e9, 1) == price_j(bn, 1e9, 1) and price_j([fitted], 1e9, 1) is None


UNKNOWN = {
    "no meter": {"phases": {"train": {"total_j": None}, "evaluate": {"total_j": None}}},
    "lost in training": {"phases": {"train": {"total_j": None}, "evaluate": {"total_j": 1.0}}},
    "lost before the look": {"phases": {"train": {"total_j": 1.0}, "evaluate": {"total_j": None}}},
    "no look": {"phases": {"train": {"total_j": 1.0}}},
    "no phases": {"phases": {}},
    "phases unknown": {"phases": None},
    "nothing computed": {"train_flops_t": 0.0},
    "too little for the meter": {"phases": {"train": {"total_j": 0.0}, "evaluate": {"total_j": 0.0}}},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_without_joules_a_stage_must_gain_more(case):
    (entry,) = lived(AFTER_BN)
    for gain, pays in ((UNPRICED_GAIN + 1e-6, True), (UNPRICED_GAIN - 1e-6, False)):
        schedule = replace(ONLY_BODY, gains=[GainRow("body", 500, 0.0, gain)], min_gain_per_kj=1e-6)
        decision = schedule.decide([entry | UNKNOWN[case]], 1)
        assert decision.expected.energy_j is None and "J" not in decision.why
        assert (decision.stage is not None) == pays


@pytest.mark.parametrize(("j_per_gflop", "plan"), [(0.1, "ridge"), (6.0, None)])
def test_joules_decide_by_the_price(j_per_gflop, plan):
    """The table and the losses are the same, the device is not."""
    stage, _, _ = decide(
        AFTER_BN, j_per_gflop=j_per_gflop, look_j=0.1, schedule=replace(SCHEDULE, min_gain_per_kj=1000.0)
    )
    assert (stage and stage.plan) == plan


@given(SCHEDULES, OUTCOMES, st.floats(1.0, 100.0))
def test_a_dearer_device_never_goes_on_where_a_cheaper_one_ends(schedule, outcomes, dearer):
    for history, decision in decisions_of(schedule, outcomes):
        if history and decision.stage is None:
            assert schedule.decide([costing(entry, dearer) for entry in history], 9).stage is None


def costing(entry, factor):
    def times(j):
        return None if j is None else j * factor

    return entry | {"phases": {name: {"total_j": times(part["total_j"])} for name, part in entry["phases"].items()}}


# What a kilojoule must bring


@given(SCHEDULES, OUTCOMES, WORTH, WORTH)
def test_a_higher_worth_never_goes_on_where_a_lower_one_ends(schedule, outcomes, one, other):
    """The lowest is 0: as good as can be."""
    low, high = sorted((one, other))
    for history, _ in decisions_of(schedule, outcomes):
        if priced(schedule, low, history).stage is None:
            assert priced(schedule, high, history).stage is None
        if priced(schedule, 0.0, history).stage is None:
            assert priced(schedule, low, history).stage is None


@given(SCHEDULES, OUTCOMES, WORTH, WORTH)
def test_a_higher_worth_never_trains_a_plan_for_longer(schedule, outcomes, one, other):
    low, high = sorted((one, other))
    for history, _ in decisions_of(schedule, outcomes):
        shorter, longer = priced(schedule, high, history).stage, priced(schedule, low, history).stage
        if shorter and shorter.plan == longer.plan:
            assert shorter.epochs <= longer.epochs


def priced(schedule, worth, history):
    return replace(schedule, min_gain_per_kj=worth).decide(history, 9)


@given(st.floats(0.0, 0.3), st.floats(0.0, 0.3), WORTH, WORTH)
@example(UNPRICED_GAIN - 1e-4, UNPRICED_GAIN + 1e-4, 0.0, 1.0)
def test_of_a_body_alone_a_higher_worth_never_trains_more(short, long, one, other):
    """Also where its joules are not known, and where the further epochs are next to nothing."""
    gains = [GainRow("body", visits_in(1), 1.0, short), GainRow("body", visits_in(3), 1.0, long)]
    for j in (1.0, None):
        fewer, more = (
            decide(AFTER_BN, j_per_gflop=j, schedule=replace(ONLY_BODY, gains=gains, min_gain_per_kj=worth)).stage
            for worth in (max(one, other), min(one, other))
        )
        assert (fewer.epochs if fewer else 0) <= (more.epochs if more else 0)


def test_as_good_as_can_be_asks_for_no_joules():
    for figures in ({"j_per_gflop": 1e9}, {"j_per_gflop": None}):
        stage, _, _ = decide(("bn", (0.7, CLEAN + 0.5)), schedule=replace(SCHEDULE, min_gain_per_kj=0.0), **figures)
        assert stage is not None
