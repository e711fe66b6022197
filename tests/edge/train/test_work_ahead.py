"""What a session expects to do is what it then does: the governor's forecasts are made of that."""

from itertools import pairwise

import numpy as np
import pytest

from edge_sel.edge.governor import Governor
from edge_sel.edge.limits import GO, Deadline, Limit
from edge_sel.edge.train.schedule import PlannedStage
from edge_sel.edge.train.work import STATISTICS_IMAGES, stage_work, work_of
from tests.edge.sessions import StopAt, digits, flipping, pack
from tests.edge.world import World, governed


def test_the_work_of_a_training_stage():
    """A forward pass over every image if one is needed, then the epochs at the gate's rate; statistics are one pass."""
    bn, affine = pack().plan("bn"), pack().plan("affine")
    assert stage_work(pack(), PlannedStage("bn", 1), 100, 0.5, scores=True) == 100 * bn.flops_train
    assert stage_work(pack(), PlannedStage("bn", 1), 10**6, 0.5, scores=True) == STATISTICS_IMAGES * bn.flops_train
    work = stage_work(pack(), PlannedStage("affine", 3), 100, 0.5, scores=True)
    assert work == pytest.approx(100 * affine.flops_forward + 3 * 50 * affine.flops_train)
    assert stage_work(pack(), PlannedStage("affine", 3), 100, 0.5, scores=False) == pytest.approx(
        3 * 50 * affine.flops_train
    )
    both = work_of(pack(), [PlannedStage("bn", 1), PlannedStage("affine", 3)], 100, 0.5, scores=True)
    assert both == pytest.approx(work + 100 * bn.flops_train) and work_of(pack(), [], 100, 0.5, scores=True) == 0


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(("rate", "epochs"), [(1.0, 1), (0.5, 3), (0.1, 10)])
def test_the_work_of_a_frozen_backbone(flips, scores, rate, epochs):
    """Once for each image, plain or mirrored, that a simulated gate lets through at all."""
    base = flipping(pack()) if flips else pack()
    rng = np.random.default_rng(0)
    asked = np.zeros((2, 20000), bool)
    asked[0] = scores
    for _ in range(epochs):
        mirrored = rng.integers(0, 2, 20000) if flips else np.zeros(20000, int)
        asked[mirrored, np.arange(20000)] |= rng.random(20000) < rate
    head = pack().plan("head")
    tail = 20000 * (scores * head.flops_forward + epochs * rate * head.flops_train)
    expected = tail + asked.sum() * pack().backbone("head").flops
    assert stage_work(base, PlannedStage("head", epochs), 20000, rate, scores=scores) == pytest.approx(
        expected, rel=0.02
    )


@pytest.fixture
def work_left(monkeypatch):
    """What the governor is told at each boundary but the first, before which there is no plan."""
    lefts = []
    monkeypatch.setattr(Governor, "at_boundary", lambda self, left: lefts.append(left))
    yield lefts
    assert lefts[0] is None and None not in lefts[1:]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("plans", ["bn", "head", "bn,affine", "head,bn,last", "closed_form", "closed_form,affine"])
def test_the_work_left_goes_down_to_nothing_by_what_was_done(plans, work_left, tmp_path):
    """With every image trained on, what was foreseen is what the graphs executed; 100 images are six batches and 4.

    But a head in closed form may choose new statistics, which take another pass: what is left rises once.
    """
    result = governed(tmp_path, World(), Deadline(1e9), plan=plans, gate="off", curriculum="off", epochs=3)
    left = work_left[1:]
    rises = [place for place, (before, after) in enumerate(pairwise(left)) if after > before]
    chose_new = any(epoch.get("statistics") == "new" for epoch in result["epochs"])
    assert len(rises) == chose_new == ("closed_form" in plans) and left[-1] == 0
    meanwhile = 16 * pack().plan("bn").flops_train + 32 * pack().backbone("closed_form").flops  # of 32 that decide
    more = left[rises[0] + 1] - left[rises[0]] + meanwhile if rises else 0.0
    stages = [PlannedStage(name, 1 if name in ("bn", "closed_form") else 3) for name in plans.split(",")]
    first_step = left[0] - left[1]
    whole = work_of(pack(), stages, 100, 1.0, scores=False)
    executed = sum(epoch["executed_flops_t"] for epoch in result["epochs"]) * 1e12
    assert left[0] + first_step == pytest.approx(whole)
    assert executed == pytest.approx(whole + more, rel=0.05)


def test_the_gate_makes_the_work_less(work_left, tmp_path):
    governed(tmp_path / "all", World(), Deadline(1e9), plan="affine", gate="off", curriculum="off")
    everything = work_left[1]
    del work_left[:]
    governed(tmp_path / "half", World(), Deadline(1e9), plan="affine", gate="sundew", target_rate=0.5, curriculum="off")
    info = pack().plan("affine")
    to_come = 2 * 100 - 16  # of two epochs, when it is told for the first time
    assert everything == pytest.approx(to_come * info.flops_train)
    assert work_left[1] == pytest.approx(0.5 * everything)


def test_scoring_counts_image_by_image(work_left, tmp_path):
    governed(tmp_path, World(), Deadline(1e9), plan="head", gate="off", curriculum="cumulative", epochs=1)
    done = [before - after for before, after in pairwise(work_left[1:7])]
    assert done == pytest.approx([16 * (pack().plan("head").flops_forward + pack().backbone("head").flops)] * 5)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("curriculum", "boundary", "again"),
    [("off", 2, 2), ("off", 8, 8), ("off", 26, 26), ("cumulative", 11, 7), ("cumulative", 15, 15)],
)
def test_a_resumed_run_expects_what_is_left(curriculum, boundary, again, work_left, tmp_path):
    """In the statistics, in the first and in the last epoch; in the scoring that begins anew, and after it."""
    given = {"plan": "bn,affine", "gate": "off", "curriculum": curriculum, "epochs": 3}
    governed(tmp_path / "one", World(), Deadline(1e9), **given)
    whole = work_left[1:]
    asked = 2 * boundary  # once before the training, then twice at each boundary: again after a wait
    governed(tmp_path / "two", World(), Deadline(1e9), should_stop=StopAt(asked), **given)
    del work_left[:]
    governed(tmp_path / "two", World(), Deadline(1e9), resume=True, **given)
    assert work_left[1:] == pytest.approx(whole[again:])


class Watching(Limit):
    """Asks for nothing; keeps when it was asked and what was expected."""

    name = "watching"

    def __init__(self):
        self.seen = []

    def check(self, readings, forecast, *, paused, ending):
        self.seen.append((readings.now_s, forecast))
        return GO


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "given",
    [
        {"plan": "affine", "gate": "off", "curriculum": "off", "epochs": 10},
        {"plan": "affine", "gate": "sundew", "curriculum": "off", "epochs": 20},
    ],
    ids=["open", "gated"],
)
def test_the_forecast_comes_true(given, tmp_path):
    world, limit = World(), Watching()
    governed(tmp_path, world, limit, images=digits(300), **given)
    for share in (0.4, 0.6, 0.8):
        now_s, forecast = next(look for look in limit.seen if look[0] >= share * world.now_s)
        left_s = world.now_s - now_s
        assert forecast.ahead_s + forecast.closing_s == pytest.approx(left_s, rel=0.3), share
        assert forecast.ahead_j == pytest.approx(10.0 * forecast.ahead_s, rel=0.01)


def test_looking_at_the_validation_set_is_no_step(tmp_path):
    """Three seconds at the end of each epoch, where a step takes one."""
    limit = Watching()
    governed(tmp_path, World(), limit, images=digits(300), plan="affine", gate="off", epochs=3, validation_fraction=0.5)
    assert 16 * 0.06 <= max(forecast.step_s for _, forecast in limit.seen) < 1.5 * 16 * 0.06
