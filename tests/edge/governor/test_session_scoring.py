"""The pass that scores every image before a training stage can be stopped, killed and limited like a step."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from edge_sel.edge.limits import Ceiling, Deadline
from edge_sel.runs.checkpoint import list_checkpoints
from tests.edge.governor.limited_sessions import Steps
from tests.edge.sessions import KillAt, Killed, StopAt, outcome
from tests.edge.world import World, governed

SCORED = {"plan": "head", "epochs": 2, "gate": "sundew"}
LOOKS = 6
"""Between seven batches of 100 images."""


@cache
def scored():
    with TemporaryDirectory() as out:
        governed(Path(out), World(), **SCORED)
        return outcome(Path(out))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("boundary", range(1, LOOKS + 1))
def test_a_run_stopped_while_scoring_scores_anew_and_ends_the_same(boundary, world, tmp_path):
    assert governed(tmp_path, world, should_stop=StopAt(boundary), **SCORED)["stopped"] == "signal"
    assert world.scored == 16 * boundary and world.trained == 0
    governed(tmp_path, world, resume=True, **SCORED)
    assert world.scored == 16 * boundary + 100, "the pass begins anew"
    assert outcome(tmp_path) == scored()


def test_a_run_killed_while_scoring_ends_the_same(world, tmp_path):
    with pytest.raises(Killed):
        governed(tmp_path, world, listener=KillAt(4), checkpoint_every_s=0.1, **SCORED)
    assert list_checkpoints(tmp_path / "checkpoints") and world.trained == 0
    governed(tmp_path, world, resume=True, **SCORED)
    assert outcome(tmp_path) == scored()


def test_a_deadline_while_scoring_ships_the_original_model(world, tmp_path):
    result = governed(tmp_path, world, Deadline(3.0), **SCORED)
    assert result["stopped"] == "deadline" and not result["shipped"]
    assert 0 < world.scored < 100 and world.trained == 0
    governed(tmp_path, world, resume=True, **SCORED)
    assert outcome(tmp_path) == scored()


def test_a_pause_while_scoring_scores_every_image_once(world, tmp_path):
    tape = Steps(world)
    result = governed(tmp_path, world, Ceiling(50.0), listener=tape, **SCORED)
    first_step_s = next(now_s for event, now_s, _ in tape.when if event == "first_step")
    paused = [now_s for event, now_s, _ in tape.when if event == "governor"]
    assert min(paused) < first_step_s and len(tape.decisions("pause")) == len(tape.decisions("resume")) > 0
    assert result["stopped"] == "done" and world.scored == 100
