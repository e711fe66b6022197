"""What ``--plan auto`` decides, from histories made by hand."""

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.ladder import (
    GUILT_PER_EPOCH,
    LEAST_GUILT,
    LEAVE_BELOW,
    MOST_EPOCHS,
    MOST_RUNGS,
    AutoLadder,
    auto_ladder,
)
from edge_sel.edge.rungs import PROBE, Rung
from edge_sel.pack.reader import Pack
from tests.edge.runs import pack

PLANS = pack().manifest.plans
CLEAN = 0.35
LADDER = AutoLadder(PLANS, CLEAN)
MUCH, LITTLE = 3 * LEAST_GUILT, LEAST_GUILT / 3
COSTS = {"head": 1.0, "affine": 2.0, "full": 3.0}


def statistics(e=2 * CLEAN):
    known = {"guard_loss": 1.0, "best_loss": 2.0, "energy_j": 1.0, "executed_flops_t": 1.0}
    return {"plan": "bn", "rung": 0, "guard_e": e, **known}


def probe(rung, joules=COSTS, /, **guilt):
    """What the probe found: nats per step of each plan, at so many joules per step."""
    found = {n: {"guilt": g, "j_per_step": joules[n], "guilt_per_j": g / joules[n]} for n, g in guilt.items()}
    unknown = {"guard_loss": None, "guard_e": None, "energy_j": 1.0, "executed_flops_t": 1.0}
    return {"plan": PROBE, "rung": rung, "probe": found, **unknown}


def trained(rung, *losses, plan="full", best=1.0):
    """One epoch per loss of the guard, which began at ``best``."""
    same = {"plan": plan, "rung": rung, "guard_e": 2 * CLEAN, "energy_j": 1.0, "executed_flops_t": 1.0}
    return [{**same, "guard_loss": loss, "best_loss": best} for loss in losses]


def decide(*history, ladder=LADDER):
    return ladder.decide(history, len({entry["rung"] for entry in history}))


def after_probe(joules=COSTS, /, **guilt):
    return decide(statistics(), probe(1, joules, **guilt))


# The beginning


def test_statistics_come_first():
    rung, why = decide()
    assert rung == Rung("bn", 1) and "statistics" in why


@pytest.mark.parametrize("plans", [{}, {"bn": replace(PLANS["bn"], buffers=())}], ids=["no bn", "nothing in it"])
def test_without_statistics_it_begins_with_the_probe(plans):
    rest = {name: info for name, info in PLANS.items() if name != "bn"}
    rung, _ = decide(ladder=AutoLadder(plans | rest, CLEAN))
    assert rung == Rung(PROBE, 1)


@pytest.mark.parametrize(("e", "ends"), [(0.5 * CLEAN, True), (CLEAN, True), (1.01 * CLEAN, False)])
def test_no_more_embarrassed_than_on_the_servers_images_is_enough(e, ends):
    rung, why = decide(statistics(e))
    assert rung == (None if ends else Rung(PROBE, 1))
    assert why.startswith("no more embarrassed") if ends else why == "still embarrassed"


def test_statistics_that_diverged_are_no_reason_to_end():
    assert decide(statistics(None))[0] == Rung(PROBE, 1)


def test_a_pack_that_does_not_know_its_embarrassment_is_probed():
    assert decide(statistics(0.0), ladder=AutoLadder(PLANS, None))[0] == Rung(PROBE, 1)


def test_the_servers_embarrassment_is_the_mean_over_its_known_classes():
    def of(*embarrassment):
        calibration = replace(pack().manifest.calibration, embarrassment=embarrassment)
        return auto_ladder(Pack(pack().path, replace(pack().manifest, calibration=calibration), {}))

    two = of(0.2, None, 0.6)
    assert decide(statistics(0.399), ladder=two)[0] is None and decide(statistics(0.401), ladder=two)[0] is not None
    assert decide(statistics(0.0), ladder=of(None, None))[0] == Rung(PROBE, 1)


# After a probe


def test_the_most_guilt_per_joule_is_tried():
    rung, why = after_probe(head=MUCH, affine=1.9 * MUCH, full=2.9 * MUCH)
    assert rung.plan == "head" and why.startswith("head has the most guilt per joule")
    assert after_probe(head=MUCH, affine=2.1 * MUCH, full=2.9 * MUCH)[0].plan == "affine"
    assert after_probe(head=-MUCH, affine=-MUCH, full=MUCH)[0].plan == "full"


def test_cheaper_by_the_meter_is_cheaper():
    guilt = dict.fromkeys(COSTS, MUCH)
    for name in COSTS:
        assert after_probe({**COSTS, name: 0.1}, **guilt)[0].plan == name


def test_too_little_guilt_ends_the_climb():
    rung, why = after_probe(head=LITTLE, affine=LITTLE, full=-MUCH)
    assert rung is None and why.startswith("no plan gains")
    assert after_probe(head=LEAST_GUILT)[0].plan == "head"
    assert after_probe(head=0.99 * LEAST_GUILT)[0] is None


def test_a_cheap_plan_without_guilt_does_not_end_the_climb():
    """Per joule it may have the most."""
    assert after_probe({**COSTS, "head": 0.01}, head=LITTLE, full=MUCH)[0].plan == "full"


def test_a_plan_of_unknown_guilt_is_not_tried():
    """Its gradients were no numbers."""
    found = probe(1, head=MUCH, full=MUCH)
    found["probe"]["full"] = dict.fromkeys(found["probe"]["full"])
    assert decide(statistics(), found)[0].plan == "head"
    found["probe"]["head"] = found["probe"]["full"]
    assert decide(statistics(), found)[0] is None


@given(st.floats(LEAST_GUILT, 1e3), st.floats(LEAST_GUILT, 1e3))
def test_more_guilt_gets_more_epochs(one, other):
    fewer, more = (after_probe(full=guilt)[0].epochs for guilt in sorted((one, other)))
    assert 1 <= fewer <= more <= MOST_EPOCHS


def test_epochs_follow_guilt():
    for epochs in range(1, MOST_EPOCHS + 1):
        if epochs * GUILT_PER_EPOCH >= LEAST_GUILT:
            assert after_probe(full=epochs * GUILT_PER_EPOCH)[0].epochs == epochs
    assert after_probe(full=1e6)[0].epochs == MOST_EPOCHS


# After training

START = [statistics(), probe(1, full=MUCH)]


@pytest.mark.parametrize("epochs", [1, 2, MOST_EPOCHS])
@pytest.mark.parametrize(("gain", "goes_on"), [(1.1, True), (0.9, False), (0.0, False), (-1.0, False)])
def test_it_goes_on_while_the_guard_gains_per_epoch(epochs, gain, goes_on):
    """Only where the rung began and ended matters, not the way."""
    losses = [*[5.0] * (epochs - 1), 1.0 - gain * LEAVE_BELOW * epochs]
    rung, why = decide(*START, *trained(2, *losses))
    assert rung == (Rung(PROBE, 1) if goes_on else None)
    assert "per epoch" in why


@pytest.mark.parametrize(("first", "best"), [(9.0, 1.0), (0.5, 0.5)], ids=["undone", "kept"])
def test_a_rung_begins_at_the_best_loss_before_it(first, best):
    """Neither one that was undone nor one that went well makes the next one look good."""
    again = trained(4, best - 0.5 * LEAVE_BELOW, best=best)
    rung, why = decide(*START, *trained(2, first), probe(3, full=MUCH), *again)
    assert rung is None and "nats per epoch" in why and "tried" not in why


@pytest.mark.parametrize(("best", "end"), [(1.0, None), (None, 1.0), (None, None)])
def test_a_plan_that_diverged_is_the_last(best, end):
    """Or one that began with a loss that was no number."""
    rung, why = decide(*START, *trained(2, 0.9, end, best=best))
    assert rung is None and why == "full diverged"


def test_at_most_so_many_plans():
    """However well it goes."""
    history, visited = [], 0
    while (rung := LADDER.decide(history, visited)[0]) is not None:
        if rung.plan == PROBE:
            history.append(probe(visited, head=MUCH, full=MUCH))
        elif rung.plan == "bn":
            history.append(statistics())
        else:
            loss = 90.0 - 10.0 * visited
            history += trained(visited, *[loss] * rung.epochs, plan=rung.plan, best=loss + 10.0)
        visited += 1
    tried = ["bn", *[PROBE, "head"] * MOST_RUNGS]
    assert [plan for plan, before in _pairs(history) if plan != before] == tried
    assert LADDER.decide(history, visited)[1] == f"{MOST_RUNGS} plans were tried"


def _pairs(history):
    plans = [entry["plan"] for entry in history]
    return zip(plans, ["", *plans[:-1]], strict=True)


# A function of the history

SOME = st.floats(0.0, 3.0) | st.none()
GUILT = st.fixed_dictionaries({name: st.floats(-1e-2, 1e-2) for name in COSTS})


@st.composite
def histories(draw):
    """What may have happened so far: nothing, statistics, and then plans, each after a probe."""
    history = [statistics(draw(SOME))] if draw(st.booleans()) else []
    rung = len(history)
    for _ in range(draw(st.integers(0, MOST_RUNGS)) if history else 0):
        losses = draw(st.lists(SOME, min_size=1, max_size=MOST_EPOCHS))
        plan, best = draw(st.sampled_from(list(COSTS))), draw(SOME)
        history += [probe(rung, **draw(GUILT)), *trained(rung + 1, *losses, plan=plan, best=best)]
        rung += 2
    return [*history, probe(rung, **draw(GUILT))] if history and draw(st.booleans()) else history


@given(histories())
def test_the_same_history_gives_the_same_decision(history):
    """From another ladder, from a checkpoint, whatever the clock says; and it is not changed by being asked."""
    kept = copy.deepcopy(history)
    decision = LADDER.decide(history, 7)
    assert history == kept
    assert AutoLadder(PLANS, CLEAN).decide(json.loads(json.dumps(history)), 7) == decision
    later = [{**entry, "time_s": 99.0, "energy_j": None} for entry in history]
    assert LADDER.decide(later, 7) == decision


@given(histories())
def test_a_decision_is_a_plan_of_the_pack_with_a_reason(history):
    rung, why = decide(*history)
    assert why and "\n" not in why
    if rung is not None:
        assert rung.plan in (*PLANS, PROBE) and 1 <= rung.epochs <= MOST_EPOCHS


def test_nothing_is_foreseen():
    assert not any(LADDER.planned(visited) for visited in range(6))
