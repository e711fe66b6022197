"""What ``--plan auto`` decides, from histories made by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.config.settings import resolve
from edge_sel.edge.train.auto_schedule import (
    BODY,
    BODY_EPOCHS,
    GENERIC,
    HEAD_EPOCHS,
    LEAST_GAIN,
    MOST_BODY_STAGES,
    auto_schedule,
    clean_loss,
)  # fmt: skip
from edge_sel.edge.train.schedule import PlannedStage
from edge_sel.edge.train.work import stage_work
from edge_sel.pack.manifest import GainRow
from tests.edge.sessions import pack
from tests.edge.train.histories import (
    AFTER_BN,
    BEFORE,
    CLEAN,
    MUCH,
    ONLY_BODY,
    PLANS,
    SCHEDULE,
    TABLE,
    decide,
    lived,
    made,
    visits_in,
)  # fmt: skip

RIDGE, LONG = PlannedStage("ridge", 1), PlannedStage("full", BODY_EPOCHS[-1])
NOTHING = (None, "the pack has no further plan", None)

# The beginning


def test_what_needs_no_gradient_comes_first():
    """Whatever it is min_gain_per_kj: it tells what is left to learn, and what a FLOP costs here."""
    for schedule in (made(), made(min_gain_per_kj=1e9), made(target=0.01), made(gains=()), made("bn", "ridge", *BODY)):
        decision = decide(schedule=schedule)
        assert decision.stage == ("closed_form", 1) and "no gradient" in decision.why and decision.expected is None


def test_without_a_closed_form_of_both_statistics_come_first():
    for schedule in (
        SCHEDULE,
        *(replace(SCHEDULE, **change) for change in ({"min_gain_per_kj": 1e9}, {"target": 0.01}, {"gains": ()})),
    ):
        decision = decide(schedule=schedule)
        assert decision.stage == PlannedStage("bn", 1) and "statistics" in decision.why and decision.expected is None


@pytest.mark.parametrize(
    "schedule", [made("bn", "closed_form"), made("closed_form", statistics=False)], ids=["no bn", "nothing in it"]
)
def test_without_statistics_it_begins_with_the_head_else_with_the_body(schedule):
    assert decide(schedule=schedule).stage == RIDGE and "no statistics" in decide(schedule=schedule).why
    less = replace(schedule, plans=["full"])
    assert decide(schedule=less).stage == PlannedStage("full", BODY_EPOCHS[0])


def test_a_pack_of_no_plan_that_it_could_use():
    assert decide(schedule=made(*PLANS)) == NOTHING
    assert decide(AFTER_BN, schedule=made("closed_form", "head", "ridge", *BODY)) == NOTHING


# Head and body


def test_the_head_comes_before_the_body():
    assert decide(AFTER_BN).stage == RIDGE
    assert decide(AFTER_BN, ("ridge", (0.73, MUCH - 0.1))).stage == LONG


@pytest.mark.parametrize("after", [(0.7, MUCH), (0.5, BEFORE[1] + 1)], ids=["kept", "undone"])
def test_after_the_closed_form_comes_the_body(after):
    """The head has been fitted, or it was found that fitting does harm."""
    assert decide(("closed_form", after), schedule=made()).stage == LONG
    assert decide(("closed_form", after), schedule=made(*BODY)) == NOTHING


def test_without_a_closed_form_the_head_takes_steps():
    assert decide(AFTER_BN, schedule=made("closed_form", "ridge")).stage == PlannedStage("head", HEAD_EPOCHS)


def test_a_head_that_does_not_pay_is_passed_over():
    poor = [replace(row, gain=0.0) if row.kind == "head" else row for row in TABLE]
    assert decide(AFTER_BN, schedule=replace(SCHEDULE, gains=poor)).stage == LONG


def test_the_body_is_the_first_of_its_plans_that_the_pack_has():
    for left, plan in enumerate(BODY):
        stage, _, _ = decide(AFTER_BN, schedule=made("closed_form", "head", "ridge", *BODY[:left]))
        assert stage == PlannedStage(plan, BODY_EPOCHS[-1])


def test_further_epochs_must_be_worth_their_own_joules():
    """One epoch of the body is expected to take 21 J after these histories, three 63."""
    for further, epochs in ((0.0, 1), (0.41, 1), (0.43, 3)):
        gains = [GainRow("body", visits_in(1), 1.0, 0.3), GainRow("body", visits_in(3), 1.0, 0.3 + further)]
        assert decide(AFTER_BN, schedule=replace(ONLY_BODY, gains=gains, min_gain_per_kj=1000.0)).stage == (
            "full",
            epochs,
        )


def test_the_body_is_trained_only_so_often():
    history = [AFTER_BN]
    for n in range(MOST_BODY_STAGES):
        assert decide(*history, schedule=ONLY_BODY).stage.plan == "full"
        history.append(("full", (0.75 + 0.05 * n, MUCH - 0.01 * n - 0.01)))
    assert decide(*history, schedule=ONLY_BODY) == NOTHING


# What is expected


def test_what_is_expected_is_told():
    decision = decide(AFTER_BN)
    assert decision.expected.gain == pytest.approx(0.03, rel=1e-4) and decision.expected.energy_j == pytest.approx(2.0)
    assert decision.why == "ridge is expected to gain 3.0 points for 2.0 J"


@pytest.mark.parametrize(
    ("after", "changes", "end"),
    [
        (("bn", (0.7, CLEAN)), {}, "; a stage must gain at least 0.3"),
        (("bn", (0.7, CLEAN)), {"min_gain_per_kj": 0.0}, "; a stage must gain at least 0.3"),
        (AFTER_BN, {"min_gain_per_kj": 1e5}, "; --min-gain-per-kj asks for 100000 points per kilojoule"),
    ],
)
def test_a_refusal_names_the_bound(after, changes, end):
    decision = decide(after, schedule=replace(SCHEDULE, **changes))
    assert decision.stage is None and decision.why.endswith(end)
    assert (decision.expected.gain < LEAST_GAIN) == ("must gain" in end)


def test_a_pack_without_a_table_is_judged_by_a_generic_one():
    for loss in (CLEAN, CLEAN + 0.3, MUCH):
        generic, none = (decide(("bn", (0.7, loss)), schedule=replace(SCHEDULE, gains=rows)) for rows in (GENERIC, ()))
        assert generic == none


def test_a_kind_that_the_server_did_not_rehearse_is_judged_by_the_generic_table():
    """The server rehearses no head in steps where it has a closed form, but an engine may have none."""
    bodies = [row for row in TABLE if row.kind == "body"]
    heads = [row for row in GENERIC if row.kind == "head"]
    head, same = (decide(AFTER_BN, schedule=made("closed_form", "ridge", gains=g)) for g in (bodies, [*bodies, *heads]))
    assert head == same and head.stage == PlannedStage("head", HEAD_EPOCHS)


def test_a_stage_that_was_undone_is_judged_by_what_it_began_with():
    for loss in (BEFORE[1], BEFORE[1] + 1, None):
        assert decide(("bn", (0.99, loss))).expected == decide(("bn", (0.6, BEFORE[1] - 1e-9))).expected
        assert decide(("bn", (0.99, loss)), schedule=replace(SCHEDULE, target=0.9)).stage is not None


def test_a_model_that_diverged_counts_as_the_worst_of_the_table():
    assert decide(("bn", (0.1, None)), before=(0.1, None)).expected.gain == pytest.approx(0.03, rel=0.01)


@pytest.mark.parametrize("came", [0.0, 0.01, 0.02])
def test_a_stage_that_disappointed_lowers_the_next_expectation(came):
    kept, less = (decide(AFTER_BN, ("ridge", (0.7 + gain, MUCH - 0.1))) for gain in (0.03, came))
    assert 0 < less.expected.gain < 0.9 * kept.expected.gain


def test_what_statistics_gave_makes_no_promise_of_training_better():
    """Nothing was promised of them."""
    broken = ("ridge", (0.9, MUCH - 0.1))
    much, none = (decide(("bn", (0.9, MUCH)), broken, before=(accuracy, MUCH + 1)) for accuracy in (0.1, 0.9))
    assert much.expected.gain == pytest.approx(none.expected.gain) and much.expected.gain < 0.05


@given(st.floats(-0.2, 0.3), st.floats(0.0, 3.0))
def test_a_repeated_stage_never_promises_more_than_the_last_gave(came, loss):
    expected = decide(
        AFTER_BN, ("full", (0.7, 1.0), (0.7 + came, loss)), schedule=replace(ONLY_BODY, min_gain_per_kj=0)
    ).expected
    assert expected.gain <= max(came, 0.0) + 1e-12
    assert expected.gain == 0 or loss < MUCH, "what was undone gave nothing"


# The target


@pytest.mark.parametrize(("accuracy", "ends"), [(0.79, False), (0.8, True), (0.95, True)])
@pytest.mark.parametrize("plan", ["bn", "ridge", "full"])
def test_it_ends_at_the_target(plan, accuracy, ends):
    stage, why, _ = decide(
        (plan, (accuracy, MUCH)), before=(0.6, 2 * MUCH), schedule=replace(SCHEDULE, target=0.8, min_gain_per_kj=0.0)
    )
    assert (stage is None) == ends == ("80.0% is good enough" in why)


# From a pack and settings


def settings(**flags):
    return resolve(flags=flags).settings


def test_the_schedule_of_a_pack():
    given = settings(min_gain_per_kj=0, target_accuracy="90%", target_rate=0.25, curriculum="off")
    schedule = auto_schedule(pack().with_manifest(replace(pack().manifest, gains=TABLE)), given, images=77)
    assert (schedule.min_gain_per_kj, schedule.target) == (0.0, 0.9) and schedule.statistics
    assert schedule.gains == TABLE and {"ridge", "closed_form"} <= {*schedule.plans}
    assert schedule.clean_loss == clean_loss(pack().manifest.calibration) > 0
    assert schedule.work(LONG) == stage_work(pack(), LONG, 77, 0.25, scores=False)


def test_its_visits_are_those_that_the_gate_lets_through():
    """Of every epoch; a head in closed form is fitted to all images."""
    for gate, rate in (("sundew", 0.25), ("random", 0.25), ("off", 1.0)):
        schedule = auto_schedule(pack(), settings(gate=gate, target_rate=0.25), images=80)
        assert [schedule.visits(stage) for stage in (LONG, PlannedStage("full", 1))] == [3 * 80 * rate, 80 * rate]
        assert schedule.visits(RIDGE) == 80


def test_its_work_is_that_of_the_settings():
    scored = auto_schedule(pack(), settings(gate="off", curriculum="staged"), images=77)
    assert scored.work(LONG) == stage_work(pack(), LONG, 77, 1.0, scores=True)


def test_an_engine_without_features_fits_no_head_in_closed_form():
    schedule = auto_schedule(pack(), settings(), images=77, headless=True)
    assert {"head", "full"} <= {*schedule.plans} and not {"ridge", "closed_form"} & {*schedule.plans}


def test_the_clean_loss_is_the_mean_over_the_deciles():
    def of(*difficulty):
        return clean_loss(replace(pack().manifest.calibration, difficulty=difficulty))

    assert of(*(n / 10 for n in range(11))) == pytest.approx(0.5) and of(0.0, 0.0, 1.0) == pytest.approx(0.25)
    assert of(0.0, 2.0, float("inf")) == pytest.approx(1.0) and of() == of(float("nan")) == 0.0


def test_it_foresees_no_stage():
    assert not any(SCHEDULE.planned(n) for n in range(6)) and lived() == []
