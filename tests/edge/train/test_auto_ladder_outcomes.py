"""What ``--plan auto`` decides, whatever the outcome of its stages."""

import copy
import itertools
import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.train.auto_ladder import BODY_EPOCHS, HEAD_EPOCHS, LEAST_GAIN, MOST_BODY_STAGES, best_figures
from edge_sel.edge.train.ladder import stages_of
from tests.edge.train.histories import LADDERS, OUTCOMES, decisions_of, is_body


@given(LADDERS, OUTCOMES)
def test_it_always_ends_with_few_plans_of_the_pack(ladder, outcomes):
    """Each with a reason on one line, and within the limits."""
    steps = [decision for _, decision in itertools.islice(decisions_of(ladder, outcomes), 99)]
    assert steps[-1].stage is None and all(step.why and "\n" not in step.why for step in steps)
    stages = [step.stage for step in steps[:-1]]
    plans = [stage.plan for stage in stages]
    assert set(plans) <= set(ladder.plans) and len({plan for plan in plans if is_body(plan)}) <= 1
    assert plans.count("bn") + plans.count("closed_form") <= 1
    assert plans.count("ridge") + plans.count("head") + plans.count("closed_form") <= 1
    assert sum(map(is_body, plans)) <= MOST_BODY_STAGES
    lengths = {"bn": (1,), "ridge": (1,), "closed_form": (1,), "head": (HEAD_EPOCHS,)}
    assert all(stage.epochs in lengths.get(stage.plan, BODY_EPOCHS) for stage in stages)


@given(LADDERS, OUTCOMES)
def test_what_needs_no_gradient_comes_first_where_there_is_any_and_never_later(ladder, outcomes):
    first = "closed_form" if "closed_form" in ladder.plans else "bn" if ladder.statistics else None
    for history, decision in decisions_of(ladder, outcomes):
        plan = decision.stage and decision.stage.plan
        assert (plan in ("closed_form", "bn")) == (first is not None and not history)
        assert history or first in (None, plan)


@given(LADDERS, OUTCOMES)
def test_the_body_comes_only_where_the_head_is_done_or_does_not_pay(ladder, outcomes):
    headed = replace(ladder, plans=[name for name in ladder.plans if not is_body(name)])
    for history, decision in decisions_of(ladder, outcomes):
        if decision.stage is not None and is_body(decision.stage.plan):
            assert headed.decide(history, 9).stage is None


@given(LADDERS, OUTCOMES)
def test_whatever_is_trained_after_the_first_stage_is_expected_to_gain(ladder, outcomes):
    for history, decision in decisions_of(ladder, outcomes):
        if history and decision.stage is not None:
            assert decision.expected.gain >= LEAST_GAIN


@given(LADDERS, OUTCOMES)
def test_nothing_follows_the_target(ladder, outcomes):
    for history, decision in decisions_of(ladder, outcomes):
        if history and ladder.target is not None and best_figures(history)[0] >= ladder.target:
            assert decision.stage is None and "good enough" in decision.why
        else:
            assert "good enough" not in decision.why


@given(LADDERS, OUTCOMES)
def test_the_best_figures_are_those_of_the_stage_with_the_least_loss(ladder, outcomes):
    for history, decision in decisions_of(ladder, outcomes):
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


@given(LADDERS, OUTCOMES, st.integers(0, 9))
def test_the_same_history_gives_the_same_decision(ladder, outcomes, stages_done):
    """From another ladder, from a checkpoint; and it is not changed by being asked."""
    for history, decision in decisions_of(ladder, outcomes):
        kept = copy.deepcopy(history)
        assert replace(ladder).decide(json.loads(json.dumps(history)), stages_done) == decision
        assert history == kept
