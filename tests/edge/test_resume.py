"""A run that was stopped or killed anywhere, and continued, is the run that was never interrupted, to the bit."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from edge_sel.edge.limits import Deadline
from edge_sel.edge.outputs import model_files, session_folder
from edge_sel.edge.progress import Progress
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import SetupError, UsageError
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.runs.checkpoint import list_checkpoints, load_checkpoint, unflatten
from tests.edge.sessions import (
    KillAt,
    Killed,
    StopAt,
    Tape,
    Ticks,
    digits,
    flipping,
    outcome,
    pack,
    session,
    some_or_all,
    tree,
)
from tests.edge.world import World, governed

# Between them: every kind of plan, gate, significance and curriculum, a stage of two epochs, channel choice, augmentation,
# features in memory and in a file.
CASES = {
    "sundew-cumulative": {"plan": "bn,last-c25", "gate": "sundew", "curriculum": "cumulative"},
    "random-staged": {"plan": "bn,head", "gate": "random", "curriculum": "staged", "epochs": 6},
    "open-flipped": {"plan": "bn,affine", "gate": "off", "curriculum": "off"},
    "frozen-file": {"plan": "head,last", "gate": "random", "curriculum": "cumulative", "feature_cache_mb": 0},
    "sundew101-staged": {"plan": "full,bn", "significance": "v101", "curriculum": "staged", "target_rate": 0.8},
}
every_case = pytest.mark.parametrize("case", CASES)
THE_OTHERS = ("sundew-cumulative", "random-staged", "open-flipped")
"""Interrupted three times by default, at every boundary when there is time."""


def start(case, out, **given):
    base = flipping(pack()) if case in ("open-flipped", "frozen-file") else pack()
    return session(out, base=base, **(CASES[case] | given))


@cache
def uninterrupted(case):
    """What the run gives, and how many step boundaries it has."""
    with TemporaryDirectory() as out:
        tape = Tape()
        start(case, Path(out), listener=tape).run()
        return outcome(Path(out)), len(tape.of("step"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "case", ["frozen-file", "sundew101-staged", *(pytest.param(case, marks=pytest.mark.slow) for case in THE_OTHERS)]
)
@some_or_all
def test_a_run_stopped_at_any_boundary_ends_the_same(case, apart, tmp_path):
    expected, boundaries = uninterrupted(case)
    assert boundaries > 8
    for boundary in range(1, boundaries + 1, apart):
        out = tmp_path / str(boundary)
        stopped = start(case, out, should_stop=StopAt(boundary)).run()
        assert stopped["stopped"] == "signal" and not stopped["shipped"]
        assert not (out / "run.json").exists()
        assert start(case, out, resume=True).run()["stopped"] == "done"
        assert outcome(out) == expected, f"stopped at boundary {boundary} of {boundaries}"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("every_s", [0.1, 7.0], ids=["saved at each step", "saved now and then"])
@some_or_all
def test_a_run_killed_at_any_boundary_ends_the_same(every_s, apart, tmp_path):
    case = "sundew-cumulative"
    expected, boundaries = uninterrupted(case)
    for boundary in range(1, boundaries + 1, apart):
        out = tmp_path / str(boundary)
        with pytest.raises(Killed):
            start(case, out, listener=KillAt(boundary), checkpoint_every_s=every_s).run()
        start(case, out, resume=True).run()
        assert outcome(out) == expected, f"killed at boundary {boundary} of {boundaries}"


def test_killed_runs_do_continue(tmp_path):
    """The test above would pass, too, if every run began anew."""
    _, boundaries = uninterrupted("sundew-cumulative")
    with pytest.raises(Killed):
        start("sundew-cumulative", tmp_path, listener=KillAt(boundaries), checkpoint_every_s=0.1).run()
    tape = Tape()
    start("sundew-cumulative", tmp_path, listener=tape, resume=True).run()
    assert len(tape.of("resumed")) == 1 and len(tape.of("step")) == 1


@pytest.mark.slow
@pytest.mark.sampled(5)
@every_case
@some_or_all
def test_a_run_interrupted_three_times_ends_the_same(case, apart, tmp_path):
    expected, boundaries = uninterrupted(case)
    for first in range(1, boundaries - 1, 2 * apart):
        out = tmp_path / str(first)
        start(case, out, should_stop=StopAt(first)).run()
        with pytest.raises(Killed):
            start(case, out, listener=KillAt(2), checkpoint_every_s=0.1, resume=True).run()
        start(case, out, should_stop=StopAt(1), resume=True).run()
        start(case, out, resume=True).run()
        assert outcome(out) == expected, f"first stopped at boundary {first} of {boundaries}"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (model_files, "write_weights"),
        (model_files, "write_model"),
        (model_files, "verify_model"),
        (session_folder, "write_json"),
    ],
)
def test_a_run_killed_while_it_writes_its_results_ends_the_same(module, name, tmp_path, monkeypatch):
    def die(*_):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module, name, die)
        start("open-flipped", tmp_path, checkpoint_every_s=0.1).run()
    start("open-flipped", tmp_path, resume=True).run()
    assert outcome(tmp_path) == uninterrupted("open-flipped")[0]


def test_seconds_of_all_parts_add_up(tmp_path):
    """The clock of these tests counts looks at it, so every part knows how many of them were its own."""
    case, passed_s = "sundew-cumulative", []

    def run(**kwargs):
        clock = Ticks()
        recorder = EnergyRecorder(None, clock, background=False, temperature=lambda: None)
        summary = start(case, tmp_path, recorder=recorder, resume=True, **kwargs).run()
        passed_s.append(clock.now_s)
        return summary

    for _ in range(3):
        before = run(should_stop=StopAt(3))
        assert before["stopped"] == "signal"
    whole = run()
    assert whole["time_s"] > before["time_s"] > 0
    assert sum(passed_s) - 4 * 8 <= whole["time_s"] <= sum(passed_s)  # building and closing a session is not counted
    assert sum(epoch["time_s"] for epoch in whole["epochs"]) <= whole["time_s"]


def test_resuming_an_empty_folder_starts_the_run(tmp_path):
    start("open-flipped", tmp_path, resume=True).run()
    assert outcome(tmp_path) == uninterrupted("open-flipped")[0]


def test_resuming_a_finished_run_returns_it_untouched(tmp_path):
    finished = session(tmp_path).run()
    before, tape = tree(tmp_path), Tape()
    assert session(tmp_path, listener=tape, resume=True).run() == finished
    assert tree(tmp_path) == before
    assert tape.events == []


CHANGES = {
    "epochs": ({"epochs": 3}, "epochs"),
    "two settings": ({"seed": 5, "gate": "off"}, "gate, seed"),
    "images": ({"images": digits(119)}, "images"),
    "test images": ({"test": digits(20, "test")}, "test"),
    "pack": ({"base": flipping(pack())}, "pack"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("finished", [False, True], ids=["stopped", "finished"])
@pytest.mark.parametrize("change", CHANGES)
def test_resuming_something_else_is_refused(change, finished, tmp_path):
    session(tmp_path, should_stop=StopAt(0 if finished else 4)).run()
    before = tree(tmp_path)
    given, named = CHANGES[change]
    with pytest.raises(UsageError, match=f"{named}\\b") as caught:
        session(tmp_path, **given, resume=True).run()
    assert "learning_rate" not in str(caught.value)  # only what has changed
    assert tree(tmp_path) == before


def test_meter_and_checkpoint_interval_may_change_between_the_parts(tmp_path):
    session(tmp_path, should_stop=StopAt(4)).run()
    session(tmp_path, meter="psutil", checkpoint_every_s=3.0, resume=True).run()
    assert outcome(tmp_path) == uninterrupted("sundew-cumulative")[0]


@pytest.mark.parametrize("stop", [0, 4], ids=["finished", "stopped"])
def test_a_used_folder_is_refused(stop, tmp_path):
    session(tmp_path, should_stop=StopAt(stop)).run()
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="--resume"):
        session(tmp_path).run()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", ["mine", "[1]", "{}", '{"identity": {}}', '{"identity": null, "stopped": "done"}'])
def test_a_result_of_something_else_is_not_taken_for_ours(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match="--out"):
        session(tmp_path, resume=True).run()
    assert tree(tmp_path) == {"run.json": content.encode()}


@pytest.mark.parametrize("name", ["run.json", "history.csv", "events.jsonl", "model.onnx", "weights.safetensors"])
def test_files_of_others_are_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="--out"):
        session(tmp_path).run()
    assert tree(tmp_path) == {name: b"mine"}


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    with pytest.raises(Killed):
        start("open-flipped", tmp_path, listener=KillAt(1)).run()
    assert list_checkpoints(tmp_path / "checkpoints") == []
    start("open-flipped", tmp_path, resume=True).run()
    assert outcome(tmp_path) == uninterrupted("open-flipped")[0]


def test_events_that_cannot_be_opened_are_one_line(tmp_path):
    session(tmp_path, should_stop=StopAt(4)).run()
    (tmp_path / "events.jsonl").unlink()
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(SetupError, match=r"cannot write .*events\.jsonl"):
        session(tmp_path, resume=True).run()


def test_a_run_killed_after_its_first_checkpoint_keeps_what_its_end_takes(tmp_path):
    with pytest.raises(Killed):
        governed(tmp_path, World(), Deadline(1e9), listener=KillAt(1), plan="affine")
    progress = unflatten(Progress, *load_checkpoint(tmp_path / "checkpoints")[:2])
    assert progress.forecast["closing_s"] > 0 and progress.forecast["closing_j"] > 0


def other_engine(name):
    if name == "torch":
        from edge_sel.engines.torch import TorchEngine

        return TorchEngine(1, device="cpu")
    return OrtEngine(1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("first", "second"), [("ort", "torch"), ("torch", "ort")])
@pytest.mark.parametrize("case", ["sundew-cumulative", "open-flipped"])
def test_another_engine_goes_on_where_the_first_was_stopped(case, first, second, tmp_path):
    """In the middle of a training stage, with its optimizer's state; not to the bit, so it is told."""
    start(case, tmp_path, engine=other_engine(first), should_stop=StopAt(4)).run()
    tape = Tape()
    start(case, tmp_path, engine=other_engine(second), resume=True, listener=tape).run()
    (event,) = tape.of("engine_changed")
    assert (event["before"], event["now"]) == (first, second)
    got, expected = load_file(tmp_path / "weights.safetensors"), load(uninterrupted(case)[0]["weights"])
    original = pack().weights()
    for name, value in expected.items():
        moved = np.abs(value - original[name]).max()
        assert np.abs(got[name] - value).max() <= 0.05 * moved + 1e-6, name
