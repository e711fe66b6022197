"""Real processes that are killed, and two processes on one folder."""

import json
import os
import shutil
import signal
import time

import pytest

from edge_sel.edge.open import LOCK
from edge_sel.edge.outputs.earlier import JOURNAL, look_into
from edge_sel.runs.checkpoint import list_checkpoints
from edge_sel.runs.journal import read_journal
from tests.cli.shell import BAD_INPUT, PACK, USAGE, refused, run
from tests.cli.test_signals import PATIENCE_S, running, wait_for
from tests.edge.sessions import events, tree

LONG = ["--plan", "bn,affine", "--epochs", 400, "--curriculum", "cumulative", "--threads", 1, "--meter", "psutil"]


@pytest.fixture
def arguments(digits_folder):
    return ["finetune", PACK, "--data", digits_folder, *LONG, "--json"]


def spent_j(here):
    last_line, _ = read_journal(here / "run" / JOURNAL)
    return last_line["total_j"] if last_line and last_line["total_j"] else 0.0


def kill_when(what, arguments, here):
    """Run until then, and cut the power."""
    with running(*arguments, "--out", "run", "--resume", cwd=here) as process:
        wait_for(what, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)


@pytest.mark.slow
def test_joules_survive_a_kill_and_count_towards_the_budget(arguments, here):
    kill_when(lambda: spent_j(here) >= 2.0, arguments, here)
    assert not list_checkpoints(here / "run" / "checkpoints"), "the usual interval is longer"
    first_j = spent_j(here)
    kill_when(lambda: list_checkpoints(here / "run" / "checkpoints"), arguments, here)  # after a cut there is one soon
    second_j = look_into(here / "run").spent().total_j
    assert second_j > first_j
    losses = [event for event in events(here / "run") if event["event"] == "lost"]
    assert losses[-1]["cut"] and first_j <= losses[-1]["energy_j"] < second_j
    # With less than that, nothing is opened any more.
    began_s = time.monotonic()
    result = run(*arguments, "--out", "run", "--resume", "--energy-budget", "2J", cwd=here)
    assert result.returncode == 75 and result.stderr.count("\n") == 1 and "budget is used up" in result.stderr
    assert time.monotonic() - began_s < 60 and look_into(here / "run").spent().total_j == second_j
    # With more, it ends in order, and all of it is in the total.
    result = run(*arguments, "--out", "run", "--resume", "--energy-budget", f"{second_j + 30:.0f}J", cwd=here)
    energy = json.loads(result.stdout)["energy"]
    assert result.returncode == 75, result.stderr
    assert energy["lost_j"] >= losses[-1]["energy_j"] and energy["total_j"] > second_j
    before = tree(here / "run")
    again = run(*arguments, "--out", "run", "--resume", "--energy-budget", f"{second_j + 30:.0f}J", cwd=here)
    assert again.returncode == 75 and json.loads(again.stdout)["stopped"] == "budget"
    assert json.loads(again.stdout)["energy"]["total_j"] == pytest.approx(energy["total_j"], rel=0.05)
    assert tree(here / "run") == before


def test_joules_of_an_opening_that_is_cut_are_not_forgotten(arguments, here):
    """Images are read and compared there, which takes a slow device minutes."""
    for _ in range(5):  # a quick machine may have opened them before this process looks
        kill_when(lambda: spent_j(here) > 0, arguments, here)
        if not (here / "run" / "events.jsonl").exists():
            break
        shutil.rmtree(here / "run")
    first_j = spent_j(here)
    kill_when(lambda: (here / "run" / "events.jsonl").exists(), arguments, here)
    (lost,) = [event for event in events(here / "run") if event["event"] == "lost"]
    assert lost["cut"] and lost["energy_j"] > first_j


@pytest.mark.slow
def test_a_run_that_was_stopped_in_order_is_not_said_to_be_cut(arguments, here):
    with running(*arguments, "--out", "run", cwd=here) as process:
        wait_for(lambda: list_checkpoints(here / "run" / "checkpoints") or spent_j(here) > 15, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    ended = look_into(here / "run")
    assert ended.ended and ended.last_line["total_j"] > 0
    kill_when(lambda: len([e for e in events(here / "run") if e["event"] == "lost"]) == 1, arguments, here)
    (lost,) = [event for event in events(here / "run") if event["event"] == "lost"]
    assert lost["cut"] is False and lost["energy_j"] < ended.last_line["total_j"], "only to open it again"


def test_a_second_process_is_refused_in_one_line(arguments, here, edge_sel):
    with running(*arguments, "--out", "run", cwd=here) as process:
        wait_for((here / "run" / JOURNAL).exists, process)
        for options in (["--resume"], []):
            refused(edge_sel(*arguments, "--out", "run", *options), USAGE, f"process {process.pid} ")
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    assert (here / "run" / LOCK).exists()
    with running(*arguments, "--out", "run", "--resume", cwd=here) as process:
        wait_for(lambda: '"cuts": 1' in (here / "run" / JOURNAL).read_text(), process)


def test_two_at_once_are_one(arguments, here):
    """One of them runs, whichever it is."""
    with running(*arguments, "--out", "run", cwd=here) as one, running(*arguments, "--out", "run", cwd=here) as two:
        began_s = time.monotonic()
        while one.poll() is None and two.poll() is None and time.monotonic() - began_s < PATIENCE_S:
            time.sleep(0.01)
        ended = one if one.poll() is not None else two
        assert ended.returncode == USAGE and "works in this folder" in ended.stderr.read()
        assert [one.poll(), two.poll()].count(None) == 1


def test_a_used_folder_is_told_before_anything_is_measured_or_read(edge_sel, here, monkeypatch, digits_folder):
    from edge_sel.api import round as api_round
    from edge_sel.power.recorder import EnergyRecorder

    (here / "run").mkdir()
    (here / "run" / "model.onnx").write_text("mine")

    def never(*_, **__):
        raise AssertionError("it cost something")

    monkeypatch.setattr(EnergyRecorder, "__enter__", never)
    monkeypatch.setattr(api_round, "load_images", never)
    refused(edge_sel("finetune", PACK, "--data", digits_folder, "--out", "run"), USAGE, "--resume")
    assert tree(here) == {"run": None, "run/model.onnx": b"mine"}


@pytest.mark.parametrize("out", ["run", "deep/er/run"])
def test_data_that_is_not_there_leaves_nothing_behind(out, edge_sel, here):
    refused(edge_sel("finetune", PACK, "--data", "nowhere", "--out", out), BAD_INPUT, "no such folder")
    assert list(here.iterdir()) == []


def test_a_resume_that_is_refused_leaves_the_journal_alone(edge_sel, here, digits_folder):
    shutil.copytree(digits_folder, here / "images")
    given = ["finetune", PACK, "--data", "images", "--out", "run", "--plan", "bn", "--threads", 1]
    assert edge_sel(*given, "--energy-budget", "1mJ").code == 75
    before = tree(here / "run")
    next((here / "images" / "3").iterdir()).unlink()
    refused(edge_sel(*given, "--resume"), USAGE, "images")
    assert tree(here / "run") == before


def test_a_file_system_without_locks_is_told(edge_sel, here, monkeypatch):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert edge_sel("finetune", "--plan", "bn", "--threads", 1, "--out", "run").code == 0
    assert [event["event"] for event in events(here / "run")].count("unlocked") == 1
