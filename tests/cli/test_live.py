"""The live line on a terminal; in a pipe there is none."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import edge_sel
from edge_sel.cli.show import LiveLine
from edge_sel.edge.train.work import probed_images

ROOT = Path(__file__).parents[2]


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def live():
    return LiveLine(Clock())


def step(left, joules=None, **more):
    spent = SimpleNamespace(total_j=joules, source="measured")
    event = {"plan_epoch": 1, "epochs": 3, "cursor": 128, "images": 400, "candidates": 128, "passed": 32, "work_left": lambda: left,
             "spent": lambda: spent, "temp_c": lambda: 51.4}  # fmt: skip
    return {**event, **more}


def test_progress_the_gate_watts_degrees_and_time_left(live):
    live.begin("last")
    assert live.line(step(1000.0, 50.0)) == (
        "last: epoch 2 of 3, 128 of 400 images seen, gate holds back 75%, 50 J measured so far, 51 °C"
    )
    live._clock.now_s += 4.0
    assert live.line(step(600.0, 90.0)) == (
        "last: epoch 2 of 3, 128 of 400 images seen, gate holds back 75%, 10 W, 90 J measured so far, 51 °C, "
        "about 6 s left in this stage"
    )


def test_a_young_line_stays_and_costs_nothing(live):
    live.begin("head")
    assert live.line(step(1000.0))
    live._clock.now_s += 0.1
    assert live.line(step(900.0, spent=pytest.fail, temp_c=pytest.fail, work_left=pytest.fail)) is None


def test_what_is_not_known_is_left_out(live):
    live.begin("bn")
    text = live.line(
        step(1000.0, None, candidates=0, passed=0, epochs=1, plan_epoch=0, temp_c=lambda: None, spent=lambda: None)
    )
    assert text == "bn: epoch 1, 128 of 400 images seen"


def test_a_stage_that_is_done_counts_no_images(live):
    """The counter is that of the next epoch, of which there is none."""
    live.begin("last")
    text = live.line(step(0.0, 50.0, plan_epoch=3, cursor=0))
    assert text.startswith("last: done, gate holds back") and "images" not in text and "left in" not in text


def test_a_run_on_a_terminal_shows_it_and_leaves_no_trace_in_the_result(here):
    main, other = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "edge_sel",
        "finetune",
        "--plan",
        "full",
        "--epochs",
        "2",
        "--threads",
        "1",
        "--out",
        "run",
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=other,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "300", "PYTHONPATH": path},
    ) as run:
        os.close(other)
        shown = b""
        while True:
            try:
                shown += os.read(main, 65536)
            except OSError:  # the other side is closed
                break
        out = run.stdout.read()
    assert run.returncode == 0
    text = shown.decode()
    assert re.search(r"full: epoch \d of 2, \d+ of \d+ images seen, gate holds back \d+%", text)
    assert b"\x1b[2K" not in out and "images seen" not in out.decode() and "accuracy on" in out.decode()


def test_every_pass_of_the_closed_form_counts_what_it_sees(tmp_path):
    """Features of all, statistics of some on trial, of more if they are better, and features of all by these."""
    events = []
    run = edge_sel.finetune(None, None, out=tmp_path / "run", plan="closed_form", threads=1, batch_size=64,
                            listener=lambda event: events.append(event))  # fmt: skip
    seen = [
        (event["cursor"], event["images"]) for event in events if event["event"] == "step" and not event["plan_epoch"]
    ]
    tried = probed_images(run.summary["images"]["train"]) // 16 * 16
    trial = [cursor for cursor, images in seen if images == tried]
    assert trial and trial == sorted(trial) and trial[0] == 16
    assert any(images == run.summary["images"]["train"] for _, images in seen)
    assert all(0 < cursor <= images for cursor, images in seen)


def test_lines_on_a_terminal_end_between_words(digits_folder, here):
    main, other = pty.openpty()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "edge_sel", "finetune", "--plan", "closed_form", "--threads", "1", "--out", "run",
               "--data", str(digits_folder)]  # fmt: skip
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=other, env=environ) as run:
        os.close(other)
        shown = b""
        while True:
            try:
                shown += os.read(main, 65536)
            except OSError:
                break
    assert run.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "\n").splitlines()
    lines_seen = [line for line in lines if "images seen" not in line]
    assert any(line.startswith("epoch 1 closed_form") for line in lines_seen) and max(map(len, lines_seen)) <= 80
    assert not any(re.search(r"(trai|wei|vali|impro)$", line.strip()) for line in lines_seen)
