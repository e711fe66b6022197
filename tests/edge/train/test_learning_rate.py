"""The step size of a plan that nobody gave one for."""

import math

import pytest

from edge_sel.edge.train.sel_stage import BASE_RATES, MAX_SEL_LOSS, learning_rate, step_hyper
from edge_sel.graphs.plans import PLANS
from edge_sel.pack.manifest import OPTIMIZER_STATE
from edge_sel.sel.curriculum import sel_learning_rate
from tests.edge.recording import Recording
from tests.edge.sessions import pack, resolved, session

TRAINED = [plan for plan in PLANS if plan != "bn"]


@pytest.mark.parametrize("optimizer", OPTIMIZER_STATE)
@pytest.mark.parametrize("plan", [*TRAINED, *(name for name, info in pack().manifest.plans.items() if info.trainable)])
def test_every_plan_that_trains_has_a_rate(optimizer, plan):
    assert 0 < learning_rate(optimizer, plan, None, 0.0) < 0.1
    assert learning_rate(optimizer, plan, None, 0.0) == BASE_RATES[optimizer][plan.partition("-c")[0]]


@pytest.mark.parametrize("rates", BASE_RATES.values(), ids=BASE_RATES)
def test_a_plan_of_few_weights_takes_larger_steps(rates):
    """Those near the input excepted: nobody knows beforehand what they do to all that follows."""
    assert rates["full"] <= min(rates["last"], rates["last2"]) <= max(rates["last"], rates["last2"])
    assert max(rates["last"], rates["last2"]) < min(rates["affine"], rates["head"])


@pytest.mark.parametrize("given", [None, 3e-3])
def test_the_loss_raises_it_and_is_bounded(given):
    base = BASE_RATES["adam"]["head"] if given is None else given
    rates = [learning_rate("adam", "head", given, loss) for loss in (0.0, 0.5, MAX_SEL_LOSS, 20.0, math.inf)]
    assert rates[:3] == [sel_learning_rate(base, loss) for loss in (0.0, 0.5, MAX_SEL_LOSS)]
    assert rates[0] < rates[1] < rates[2] == rates[3] == rates[4]


@pytest.mark.parametrize("plan", ["head", "last-c25"])
def test_what_is_given_overrules_the_table(plan):
    assert {learning_rate(optimizer, plan, 0.5, 0.0) for optimizer in OPTIMIZER_STATE} == {0.5}


@pytest.mark.parametrize("given", [None, 2e-3])
def test_a_session_steps_by_it(given, tmp_path):
    """Never above the rate of the largest loss that counts, and near it in between."""
    engine = Recording()
    session(tmp_path, plan="full,last-c25", learning_rate=given, engine=engine, curriculum="off", gate="off").run()
    optimizer, steps = pack().manifest.optimizer, {"full": [], "last-c25": []}
    plans = [plan for plan, what, *_ in engine.calls if what == "step"]
    for plan, hyper in zip(plans, engine.hypers, strict=True):
        steps[plan].append(hyper.learning_rate)
    for plan, rates in steps.items():
        least, most = (learning_rate(optimizer, plan, given, loss) for loss in (0.0, MAX_SEL_LOSS))
        assert 0.5 * least < max(rates) <= most


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_smaller_batch_takes_a_step_in_proportion(share):
    given = {"loss": 0.5, "thousandth": 300, "curriculum_stage": 0, "curriculum_stages": 1}
    whole, part = (
        step_hyper(pack(), pack().plan("full"), resolved().settings, share=size, **given).learning_rate
        for size in (1.0, share)
    )
    assert part == pytest.approx(share * whole) and whole > 0
