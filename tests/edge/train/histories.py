"""Automatic schedules, and histories made by hand for them."""

import itertools

from hypothesis import strategies as st

from edge_sel.edge.train.auto_schedule import BODY, AutoSchedule
from edge_sel.edge.train.schedule import loss_in, was_kept
from edge_sel.pack.manifest import GainRow

PLANS = ("bn", "head", "ridge", "closed_form", "affine", "last", "last2", "first", "full")
CLEAN = 0.2
MUCH = CLEAN + 1.0
"""A validation loss at which everything is promised to pay."""


def visits_in(epochs):
    """So far apart that the rows of one epoch and of three tell nothing of each other."""
    return 500 * 2 ** (5 * (epochs - 1))


TABLE = (
    *(GainRow("head", visits_in(1), excess, gain) for excess, gain in ((0.0, 0.0), (1.0, 0.03))),
    *(GainRow("body", visits_in(1), excess, gain) for excess, gain in ((0.0, 0.0), (1.0, 0.06))),
    *(GainRow("body", visits_in(3), excess, gain) for excess, gain in ((0.0, 0.0), (1.0, 0.10))),
)
BEFORE = (0.6, MUCH + 1.0)
"""Accuracy and loss on the validation set of the model that a training stage begins with."""
FLOPS = {"bn": 1e9, "ridge": 1e9, "closed_form": 2e9, "head": 2e9}
BODY_FLOPS = 1e10
"""Of an epoch of each plan."""


def work(stage):
    return stage.epochs * FLOPS.get(stage.plan, BODY_FLOPS)


def made(*without, gains=TABLE, statistics=True, min_gain_per_kj=10.0, target=None, clean=CLEAN):
    plans = [name for name in PLANS if name not in without]
    return AutoSchedule(
        plans,
        statistics and "bn" in plans,
        gains,
        clean,
        lambda stage: visits_in(stage.epochs),
        work,
        min_gain_per_kj,
        target,
    )


SCHEDULE = made("closed_form")
"""Of a pack or an engine without that."""
ONLY_BODY = made("closed_form", "head", "ridge")


def ran(number, plan, *after, before=BEFORE, j_per_gflop=1.0, look_j=1.0):
    """A stage that began ``before``; (accuracy, loss) of the validation set after each of its epochs.

    Its joules are those of its work, and of a look at the validation set after each epoch; None where they are unknown.
    """
    flops = FLOPS.get(plan, BODY_FLOPS)
    train = None if j_per_gflop is None else j_per_gflop * flops / 1e9
    phases = {"train": {"total_j": train}, "evaluate": {"total_j": look_j}}
    same = {
        "training_stage": number, "plan": plan, "best_acc": before[0], "best_loss": before[1],
        "energy_j": None if None in (train, look_j) else train + look_j,
        "train_flops_t": flops / 1e12, "trained": visits_in(len(after)) / len(after), "phases": phases,
    }  # fmt: skip
    stage = [{**same, "validation_acc": accuracy, "validation_loss": loss} for accuracy, loss in after]
    stage[-1]["kept"] = loss_in(after[-1][1]) < loss_in(before[1])
    return stage


def best_after(stage, before):
    """What the next stage begins with."""
    return (stage[-1]["validation_acc"], stage[-1]["validation_loss"]) if was_kept(stage) else before


def lived(*stages, before=BEFORE, **figures):
    """A history of stages, each a plan and (accuracy, loss) after each of its epochs."""
    history = []
    for number, (plan, *after) in enumerate(stages):
        stage = ran(number, plan, *after, before=before, **figures)
        history, before = history + stage, best_after(stage, before)
    return history


def decide(*stages, schedule=SCHEDULE, **figures):
    return schedule.decide(lived(*stages, **figures), len(stages))


AFTER_BN = ("bn", (0.7, MUCH))

# For properties

ACCURACY = st.floats(0.0, 1.0)
LOSS = st.floats(0.0, 4.0) | st.none()
JOULES = st.floats(0.0, 1e3) | st.none()
OUTCOMES = st.lists(st.tuples(ACCURACY, LOSS, JOULES), min_size=1, max_size=20)
WORTH = st.floats(0.0, 1e3) | st.just(0.0)
ROWS = st.builds(
    GainRow,
    st.sampled_from(["head", "body"]),
    st.integers(1, 50000),
    st.floats(-0.5, 3.0),
    st.floats(-0.1, 0.3),
)
SCHEDULES = st.builds(
    lambda without, gains, statistics, min_gain_per_kj, target: made(
        *without, gains=gains, statistics=statistics, min_gain_per_kj=min_gain_per_kj, target=target
    ),
    st.just([]) | st.lists(st.sampled_from(PLANS)),
    st.just(TABLE) | st.lists(ROWS, max_size=8),
    st.booleans(),
    WORTH,
    st.none() | st.floats(0.01, 1.0),
)


def decisions_of(schedule, outcomes):
    """Every (history, decision) of an automatic run whose epochs come to ``outcomes``, over and over."""
    history, before, outcomes = [], outcomes[0][:2], itertools.cycle(outcomes)
    for number in itertools.count():
        decision = schedule.decide(history, number)
        yield list(history), decision
        if decision.stage is None:
            return
        epochs = list(itertools.islice(outcomes, decision.stage.epochs))
        after = [epoch[:2] for epoch in epochs]
        stage = ran(number, decision.stage.plan, *after, before=before, j_per_gflop=epochs[0][2], look_j=epochs[-1][2])
        history, before = history + stage, best_after(stage, before)


def is_body(plan):
    return plan in BODY
