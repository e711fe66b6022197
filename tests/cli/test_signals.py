"""Ctrl-C, a service manager's SIGTERM and a power cut: nothing is lost, and the statuses say what happened."""

import json
import signal
import sys
import time
from contextlib import contextmanager

import pytest

from edge_sel.errors import EXIT_INTERRUPTED, EXIT_STOPPED_RESUMABLE
from edge_sel.runs.checkpoint import list_checkpoints
from edge_sel.runs.stop_signal import StopSignal
from tests.cli.shell import PACK, run, start

PATIENCE_S = 100.0


def wait_for(what, process):
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def running(*arguments, cwd, **given):
    """A process that does not outlive the test."""
    process = start(*arguments, cwd=cwd, **given)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def arguments(digits_folder):
    """A second of work or more, most of it after the second epoch."""
    plan = ["--plan", "bn,affine", "--epochs", 40, "--curriculum", "cumulative"]
    return ["finetune", PACK, "--data", digits_folder, *plan, "--threads", 1, "--json"]


@pytest.fixture
def uninterrupted(arguments, tmp_path, edge_sel):
    folder = tmp_path / "uninterrupted"
    assert edge_sel(*arguments, "--out", folder).code == 0
    return (folder / "weights.safetensors").read_bytes(), (folder / "model.onnx").read_bytes()


def learning(here):
    """Whether the second plan has begun to train."""
    path = here / "run" / "events.jsonl"
    return path.exists() and path.read_text().count('"event": "epoch"') >= 2


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_a_step_and_the_resumed_run_ends_the_same(number, arguments, uninterrupted, edge_sel, here):
    with running(*arguments, "--out", "run", cwd=here) as process:
        wait_for(lambda: learning(here), process)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == EXIT_STOPPED_RESUMABLE == 75, err
    result = json.loads(out)
    assert result["stopped"] == "signal" and result["shipped"] is False
    assert 2 <= len(result["epochs"]) < 41
    assert len(list_checkpoints(here / "run" / "checkpoints")) >= 1
    assert not (here / "run" / "run.json").exists() and not (here / "run" / "model.onnx").exists()
    assert "stopped (signal)" in edge_sel("runs", "run").out
    refused = edge_sel("predict", "run", "image.png")
    assert refused.code == 4 and "the run has no model.onnx" in refused.err
    resumed = edge_sel(*arguments, "--out", "run", "--resume")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["epochs"][:2] == result["epochs"][:2]
    assert (here / "run" / "weights.safetensors").read_bytes() == uninterrupted[0]
    assert (here / "run" / "model.onnx").read_bytes() == uninterrupted[1]


@pytest.mark.slow
def test_a_run_resumed_after_a_power_cut_ends_the_same(arguments, uninterrupted, here):
    with running(*arguments, "--out", "run", "--checkpoint-every", "0.05s", cwd=here) as process:
        wait_for(lambda: learning(here) and list_checkpoints(here / "run" / "checkpoints"), process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL
    resumed = run(*arguments, "--out", "run", "--resume", cwd=here)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed" in (here / "run" / "events.jsonl").read_text()
    assert (here / "run" / "weights.safetensors").read_bytes() == uninterrupted[0]


SLOW = """\
import sys, time
import edge_sel.edge.session as session
from edge_sel.cli.main import main
def run(self, **_):
    print("working", flush=True)
    time.sleep(100)
session.Session.run = run
main()
"""


def test_a_second_signal_leaves_at_once(here):
    """The first one waits for the end of the step, which never comes here."""
    with running("finetune", cwd=here, command=[sys.executable, "-c", SLOW]) as process:
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == EXIT_INTERRUPTED == 130
    assert "Traceback" not in err and "interrupted" in err


def test_a_terminal_that_is_gone_stops_at_a_step(arguments, here):
    with running(*arguments, "--out", "run", cwd=here) as process:
        wait_for(lambda: learning(here), process)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == EXIT_STOPPED_RESUMABLE and list_checkpoints(here / "run" / "checkpoints")


def test_nobody_who_reads_the_progress_ends_no_run(here):
    """As with ``2>&1 | head``: the reader of stderr ends before the run does."""
    with running("finetune", "--plan", "head", "--epochs", 2, "--out", "run", cwd=here) as process:
        process.stderr.close()
        process.stderr = None
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and (here / "run" / "model.onnx").exists()


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nohup_is_respected(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignal()
    signal.raise_signal(signal.SIGHUP)
    assert stop() is None


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(first, second, handlers):
    stop = StopSignal()
    assert stop() is None
    signal.raise_signal(first)
    assert stop() == "signal" == stop()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(second)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_says_twice_that_it_is_gone_lets_the_run_save(first, handlers):
    """The kernel says so, and the shell too."""
    stop = StopSignal()
    for number in (first, signal.SIGHUP, signal.SIGHUP):
        signal.raise_signal(number)
    assert stop() == "signal"
