"""What ``--plan auto`` decides, whatever the outcome of its stages."""

import copy
import itertools
import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.train.auto_schedule import BODY_EPOCHS, HEAD_EPOCHS, LEAST_GAIN, MOST_BODY_STAGES, best_figures
from edge_sel.edge.train.schedule import stages_of
from tests.edge.train.histories import OUTCOMES, SCHEDULES, decisions_of, is_body


@given(SCHEDULES, OUTCOMES)
def test_it_always_ends_with_few_plans_of_the_pack(schedule, outcomes):
    """Each with a reason on one line, and within the limits."""
    steps = [decision for _, decision in itertools.islice(decisions_of(schedule, outcomes), 99)]
    assert steps[-1].stage is None and all(step.why and "\n" not in step.why for step in steps)
    stages = [step.stage for step in steps[:-1]]
    plans = [stage.plan for stage in stages]
    assert set(plans) <= set(schedule.plans) and len({plan for plan in plans if is_body(plan)}) <= 1
    assert plans.count("bn") + plans.count("closed_form") <= 1
    assert plans.count("ridge") + plans.count("head") + plans.count("closed_form") <= 1
    assert sum(map(is_body, plans)) <= MOST_BODY_STAGES
    lengths = {"bn": (1,), "ridge": (1,), "closed_form": (1,), "head": (HEAD_EPOCHS,)}
    assert all(stage.epochs in lengths.get(stage.plan, BODY_EPOCHS) for stage in stages)


@given(SCHEDULES, OUTCOMES)
def test_what_needs_no_gradient_comes_first_where_there_is_any_and_never_later(schedule, outcomes):
    first = "closed_form" if "closed_form" in schedule.plans else "bn" if schedule.statistics else None
    for history, decision in decisions_of(schedule, outcomes):
        plan = decision.stage and decision.stage.plan
        assert (plan in ("closed_form", "bn")) == (first is not None and not history)
        assert history or first in (None, plan)


@given(SCHEDULES, OUTCOMES)
def test_the_body_comes_only_where_the_head_is_done_or_does_not_pay(schedule, outcomes):
    headed = replace(schedule, plans=[name for name in schedule.plans if not is_body(name)])
    for history, decision in decisions_of(schedule, outcomes):
        if decision.stage is not None and is_body(decision.stage.plan):
            assert headed.decide(history, 9).stage is None


@given(SCHEDULES, OUTCOMES)
def test_whatever_is_trained_after_the_first_stage_is_expected_to_gain(schedule, outcomes):
    for history, decision in decisions_of(schedule, outcomes):
        if history and decision.stage is not None:
            assert decision.expected.gain >= LEAST_GAIN


@given(SCHEDULES, OUTCOMES)
def test_nothing_follows_the_target(schedule, outcomes):
    for history, decision in decisions_of(schedule, outcomes):
        if history and schedule.target is not None and best_figures(history)[0] >= schedule.target:
            assert decision.stage is None and "good enough" in decision.why
        else:
            assert "good enough" not in decision.why


@given(SCHEDULES, OUTCOMES)
def test_the_best_figures_are_those_of_the_stage_with_the_least_loss(schedule, outcomes):
    for history, decision in decisions_of(schedule, outcomes):
        if history and decision.stage is None:
            ends = [stage[-1] for stage in stages_of(history)]
            found = [
                (entry["validation_loss"], entry["validation_acc"])
                for entry in ends
                if entry["validation_loss"] is not None
            ]
            begun = [(history[0]["best_loss"], history[0]["best_acc"])] if history[0]["best_loss"] is not None else []
            accuracy, loss = best_figures(history)
            assert not (begun or found) or loss == min([*begun, *found])[0]
            assert accuracy in [history[0]["best_acc"], *(entry["validation_acc"] for entry in ends)]


@given(SCHEDULES, OUTCOMES, st.integers(0, 9))
def test_the_same_history_gives_the_same_decision(schedule, outcomes, stages_done):
    """From another schedule, from a checkpoint; and it is not changed by being asked."""
    for history, decision in decisions_of(schedule, outcomes):
        kept = copy.deepcopy(history)
        assert replace(schedule).decide(json.loads(json.dumps(history)), stages_done) == decision
        assert history == kept
