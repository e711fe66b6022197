"""What ``--plan auto`` decides, whatever the outcome of its training stages."""

import copy
import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.train.ladder import BODY
from tests.edge.train.histories import CLEAN, CONFIG, LADDER, PLANS, made, ran

LOSS = st.floats(0.0, 3.0) | st.just(1.0) | st.none()
E = st.floats(0.0, 3.0) | st.sampled_from([0.0, CLEAN]) | st.none()
OUTCOMES = st.lists(st.tuples(LOSS, E), min_size=1, max_size=30)
LESS = st.just([]) | st.lists(st.sampled_from(list(PLANS)))
LADDERS = st.builds(lambda less, e, new: made(*less, clean_e=e, new_classes=new), LESS, E, st.booleans())


def decisions_of(ladder, outcomes):
    """Every (history, stage, why) of an automatic run whose epochs end in ``outcomes``, over and over."""
    history, best, outcomes = [], outcomes[0], itertools.cycle(outcomes)
    for visited in itertools.count():
        stage, why = ladder.decide(history, visited)
        yield list(history), stage, why
        if stage is None:
            return
        history += ran(visited, stage.plan, *itertools.islice(outcomes, stage.epochs), before=best)
        end = (history[-1]["guard_loss"], history[-1]["guard_e"])
        best = end if end[0] is not None and (best[0] is None or end[0] < best[0]) else best


@given(LADDERS, OUTCOMES)
def test_it_always_ends_with_few_plans_of_the_pack(ladder, outcomes):
    """In the order of their costs, each with a reason and within the limits."""
    steps = list(itertools.islice(decisions_of(ladder, outcomes), 99))
    assert steps[-1][1] is None and all(why and "\n" not in why for _, _, why in steps)
    most = {"bn": 1, "head": CONFIG.head_epochs}
    for _, stage, _ in steps[:-1]:
        assert stage.plan in ladder._plans and stage.plan in ("bn", "head", *BODY)
        assert 1 <= stage.epochs <= most.get(stage.plan, max(CONFIG.most_epochs, CONFIG.unknown_epochs))
    plans = [stage.plan for _, stage, _ in steps[:-1]]
    bodies = [plan for plan in plans if plan in BODY]
    assert plans == [plan for plan in most if plan in plans] + bodies
    assert len(bodies) <= CONFIG.most_body_stages and len(set(bodies)) <= 1


@given(LADDERS, OUTCOMES)
def test_the_head_comes_where_classes_have_changed(ladder, outcomes):
    """Or where there are no statistics that could tell; and then always, unless the model is good enough."""
    for history, stage, why in decisions_of(ladder, outcomes):
        headed = stage is not None and stage.plan == "head"
        if not history:
            assert headed == ("head" in ladder._plans and "bn" not in ladder._plans)
        elif [entry["plan"] for entry in history] == ["bn"] and "on the server's images" not in why:
            now, then = history[0]["guard_loss"], history[0]["best_loss"]
            no_good = now is None or (then is not None and now >= then)
            assert headed == ("head" in ladder._plans and (ladder._new_classes or no_good))
        else:
            assert not headed


@given(LADDERS, OUTCOMES, st.integers(0, 9))
def test_the_same_history_gives_the_same_decision(ladder, outcomes, visited):
    """From another ladder, from a checkpoint; and it is not changed by being asked."""
    for history, *decision in decisions_of(ladder, outcomes):
        kept = copy.deepcopy(history)
        assert list(copy.deepcopy(ladder).decide(json.loads(json.dumps(history)), visited)) == decision
        assert history == kept


@given(LADDERS, OUTCOMES, st.lists(st.floats(0, 1e6) | st.none(), min_size=1))
def test_neither_joules_nor_time_decide(ladder, outcomes, figures):
    """The meter may be another one, or none."""
    for history, stage, _ in decisions_of(ladder, outcomes):
        other = [{**e, "energy_j": j, "time_s": j} for e, j in zip(history, itertools.cycle(figures), strict=False)]
        assert ladder.decide(other, 7)[0] == stage


def test_an_automatic_schedule_foresees_no_stage():
    assert not any(LADDER.planned(visited) for visited in range(6))
