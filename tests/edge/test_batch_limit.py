"""Where memory is short, the work is done in smaller batches; the shortage is a real one, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sel.edge.memory import FLOOR, BatchLimit
from edge_sel.errors import SetupError
from tests.cli.shell import ROOT, environment
from tests.edge.sessions import events, outcome

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts address space against RLIMIT_AS")


def short(work: str, megabytes: int, out: Path, **settings: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.edge.short_of_memory", work, str(megabytes), str(out), json.dumps(settings)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def fits(most: int, log: list[int]):
    """A computation that has room for so many images."""

    def compute(images):
        count = images if isinstance(images, int) else len(images)
        log.append(count)
        if count > most:
            raise MemoryError
        return count

    return compute


def test_nothing_changes_as_long_as_memory_suffices():
    limit = BatchLimit()
    assert limit.of(1) == 1 and limit.of(512) == 512
    assert limit.whole(32, fits(32, []), "work") == 32 and limit.images == 0


def test_a_limit_that_was_found_once_is_kept():
    limit, log = BatchLimit(), []
    assert limit.whole(100, fits(30, log), "work") == 25
    assert limit.whole(100, fits(100, log), "work") == 25
    assert log == [100, 50, 25, 25] and limit.of(9) == 9


def test_parts_are_all_rows_once_and_in_order():
    limit, log = BatchLimit(), []
    parts = list(limit.parts(np.arange(50), fits(13, log), "work"))
    assert log == [50, 25, 12, 12, 12, 12, 2]
    assert np.concatenate([part for part, _ in parts]).tolist() == list(range(50))
    assert [result for _, result in parts] == [12, 12, 12, 12, 2]


def test_the_floor_is_tried_before_giving_up():
    limit, log = BatchLimit(), []
    with pytest.raises(SetupError, match=rf"out of memory.* {FLOOR} images.*: scoring \(.*--resume"):
        limit.whole(13, fits(0, log), "scoring")
    assert log == [13, FLOOR]


def test_where_few_images_do_not_fit_training_makes_room():
    """Evaluation in fours fails beside training in sixty-fours: smaller steps may be what helps."""
    limit = BatchLimit(64)

    def compute(images):
        if limit.images > 16:
            raise MemoryError
        return images

    assert limit.whole(4, compute, "evaluation") == 4 and limit.images == 16


@linux
def test_a_run_goes_on_in_smaller_batches_and_says_so(tmp_path):
    outcome = short("run", 40, tmp_path / "run")
    assert (
        outcome["stopped"] == "done"
        and outcome["batch_limits"][0] == 128
        and outcome["limit"] == outcome["batch_limits"][-1] < 256
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["batch_limit"] == outcome["limit"]
    kinds = [event["event"] for event in events(tmp_path / "run")]
    first = kinds.index("memory_short")
    assert kinds[first + 1] == "checkpoint", "whoever is killed now goes on with this batch"


@pytest.mark.slow
@linux
def test_a_run_cut_after_the_shortage_goes_on_with_its_batch_and_ends_with_the_same_bits(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted = short("run", 40, whole, cut=str(cut))
    resumed = short("run", 0, cut, resume=True)
    assert uninterrupted["batch_limits"] != [] and resumed["resumed"] and resumed["batch_limits"] == []
    assert resumed["limit"] == uninterrupted["limit"] and outcome(cut) == outcome(whole)


@linux
def test_below_the_smallest_batch_the_run_ends_with_one_line(tmp_path):
    outcome = short("run", 30, tmp_path / "run", floor=128)
    assert outcome["batch_limits"] == [128] and "128 images" in outcome["error"]
    assert outcome["status"] == SetupError.exit_code and "a training step" in outcome["error"]
    assert "\n" not in outcome["error"]


@pytest.mark.sampled(2)
@linux
@pytest.mark.parametrize("changed", [{"curriculum": "staged"}, {"plan": "full-c25"}], ids=["scoring", "probing"])
def test_what_comes_before_the_steps_is_done_in_smaller_batches_too(changed, tmp_path):
    outcome = short("run", 30, tmp_path / "run", **changed)
    assert outcome["stopped"] == "done" and 0 < outcome["limit"] < 256


@pytest.mark.slow
@linux
def test_inference_tells_the_same_in_smaller_batches(tmp_path):
    outcome = short("inference", 6, tmp_path)
    assert 0 < outcome["limit"] < 400 and outcome["close"]


@pytest.mark.slow
@linux
def test_statistics_are_the_mean_over_the_parts(tmp_path):
    outcome = short("statistics", 8, tmp_path)
    assert 0 < outcome["limit"] < 200 and outcome["rows"] == list(range(400)) and outcome["first mean"]
