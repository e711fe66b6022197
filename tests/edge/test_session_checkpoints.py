"""A session's checkpoints: as often as told, two of them, and a full or failing disk is one line."""

import os

import pytest

from edge_sel.errors import SetupError
from edge_sel.runs.checkpoint import list_checkpoints
from tests.edge.sessions import StopAt, Tape, full_disk, outcome, session, tree


def test_a_session_keeps_two_and_says_so(tmp_path):
    tape = Tape()
    session(tmp_path, checkpoint_every_s=0.1, listener=tape).run()
    files = [path.name for _, path in list_checkpoints(tmp_path / "checkpoints")]
    saved = [event["file"] for event in tape.of("checkpoint")]
    assert len(saved) == len(tape.of("step")) and saved[-2:] == files


def test_a_session_saves_no_more_often_than_told(tmp_path):
    """The clock counts its looks, so a long interval means few checkpoints."""
    saved = {}
    for every_s in (0.1, 7.0, 1e9):
        tape = Tape()
        session(tmp_path / str(every_s), checkpoint_every_s=every_s, listener=tape).run()
        saved[every_s] = len(tape.of("checkpoint"))
        assert saved[every_s] <= tape.events[-1]["t_s"] / every_s
    assert saved[0.1] > saved[7.0] > saved[1e9] == 0


def test_a_damaged_newest_costs_a_step_and_nothing_else(tmp_path):
    session(tmp_path / "whole").run()
    out = tmp_path / "cut"
    session(out, checkpoint_every_s=0.1, should_stop=StopAt(5)).run()
    newest = list_checkpoints(out / "checkpoints")[-1][1]
    newest.write_bytes(newest.read_bytes()[:-1])
    session(out, resume=True).run()
    assert outcome(out) == outcome(tmp_path / "whole")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("what", ["checkpoint", "events"])
def test_a_disk_that_fills_up_during_a_session_is_one_line(what, tmp_path, monkeypatch):
    session(tmp_path, should_stop=StopAt(3)).run()
    before, open_ = tree(tmp_path / "checkpoints"), os.open
    with monkeypatch.context() as patched, pytest.raises(SetupError, match="No space left"):
        if what == "checkpoint":
            patched.setattr(os, "fsync", full_disk)
        else:
            events = str(tmp_path / "events.jsonl")
            patched.setattr(os, "open", lambda path, *how: full_disk() if str(path) == events else open_(path, *how))
        session(tmp_path, checkpoint_every_s=0.1, resume=True).run()
    assert tree(tmp_path / "checkpoints") == before
    session(tmp_path, resume=True).run()
    session(tmp_path / "whole").run()
    assert outcome(tmp_path) == outcome(tmp_path / "whole")
