"""The suite of a GPU session: its budget, its record and its parts, as far as a processor can show them."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_suite  # noqa: E402
from gpu.jobs import Job, all_jobs  # noqa: E402
from gpu.nvml_check import integrate  # noqa: E402

from edge_sel.reference.systems import SYSTEMS  # noqa: E402

SAVING = """\
import signal, sys, time
def save(*_):
    print("saved", file=sys.stderr)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""


def suite(*words):
    command = [sys.executable, str(ROOT / "tools" / "gpu_suite.py"), *map(str, words)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=280)


def job(code, least_s=0.0):
    return Job("it", (sys.executable, "-c", code), least_s, "a test")


def run(code, out, seconds=60.0):
    return gpu_suite.run(job(code), out, dict(os.environ), seconds)


def test_a_job_that_prints_json_leaves_it_and_any_other_its_log(tmp_path):
    outcome = run("print('{\"ratio\": 8}'); import sys; sys.stderr.write('on the way')", tmp_path)
    assert outcome["status"] == "done" and json.loads((tmp_path / "it.json").read_text()) == {"ratio": 8}
    assert "on the way" in (tmp_path / "it.log").read_text()
    assert run("print('words')", tmp_path)["status"] == "done"
    assert (tmp_path / "it.log").read_text().count("$ ") == 2 and "words" in (tmp_path / "it.log").read_text()


def test_what_fails_and_what_is_not_there_are_told(tmp_path):
    assert run("raise SystemExit(3)", tmp_path) | {"seconds": 0} == {"status": "failed", "exit": 3, "seconds": 0}
    missing = gpu_suite.run(Job("it", ("no-such-program",), 0, ""), tmp_path, dict(os.environ), 1.0)
    assert missing["status"] == "failed" and "no-such-program" in (tmp_path / "it.log").read_text()


def test_at_the_end_of_the_budget_a_job_is_asked_to_save(tmp_path):
    began_s = time.monotonic()
    outcome = run(SAVING, tmp_path, 3.0)
    assert outcome["status"] == "unfinished" and outcome["exit"] == 75 and time.monotonic() - began_s < 30
    assert "saved" in (tmp_path / "it.log").read_text()


def test_one_that_does_not_listen_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "GRACE_S", 0.5)
    ignoring = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = f"{ignoring}; time.sleep(60)"
    began_s = time.monotonic()
    result = run(f"{ignoring}; subprocess.run([sys.executable, '-c', {child!r}])", tmp_path, 2.0)
    assert result["status"] == "unfinished" and result["exit"] == -9 and time.monotonic() - began_s < 20


def test_the_jobs_are_named_once_and_their_systems_exist(tmp_path):
    jobs = all_jobs(tmp_path, "images", smoke=False)
    assert len({one.name for one in jobs}) == len(jobs) and jobs[0].name == "card"
    for one in jobs:
        if "reference" in one.words and "torchrun" not in one.name:
            names = one.words[one.words.index("reference") + 1 : one.words.index("--scale")]
            known = [name for name in names if not name.startswith("--") and not name.isdigit()]
            assert set(known) <= set(SYSTEMS), one.name
    assert suite("--list").stdout.count("\n") == len(jobs)


def test_an_archive_of_images_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite.tempfile, "gettempdir", lambda: str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.jpg").write_bytes(b"picture")
    with tarfile.open(tmp_path / "some.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "train", "train")
    found = gpu_suite.unpacked(tmp_path / "some.tar.gz")
    assert (found / "train" / "cat" / "a.jpg").read_bytes() == b"picture"
    (found / "mark").touch()
    assert (gpu_suite.unpacked(tmp_path / "some.tar.gz") / "mark").exists()
    assert gpu_suite.unpacked(found) == found


def test_what_is_packed_has_no_checkpoint(tmp_path):
    out = tmp_path / "gpu"
    for name in ("reference/fast/seed-0/run.json", "reference/fast/seed-0/checkpoint-1.safetensors", "card.log"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}")
    gpu_suite.pack(out, tmp_path / "small.tar.gz")
    with tarfile.open(tmp_path / "small.tar.gz") as archive:
        assert set(archive.getnames()) == {"gpu/card.log", "gpu/reference/fast/seed-0/run.json"}


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20), st.floats(0.01, 5))
def test_a_constant_power_is_power_times_time(moments, watts):
    samples = [(second, watts) for second in sorted(moments)]
    assert integrate(samples) == pytest.approx(watts * (samples[-1][0] - samples[0][0]), abs=1e-6)


@pytest.mark.parametrize("wrong", [["--only", "nope", "--smoke"], ["--images", "/no/such"], []])
def test_wrong_arguments_are_one_line(wrong, tmp_path):
    result = suite(*wrong, "--out", tmp_path)
    assert result.returncode in (1, 2) and "Traceback" not in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_second_call_goes_on_where_the_first_was_stopped(tmp_path):
    """On a processor, with the parts that run there; those that need a card say why not."""
    given = ["--smoke", "--out", tmp_path / "gpu", "--pack", tmp_path / "gpu.tar.gz"]
    first = suite(*given, "--budget", "45s")
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "gpu" / "jobs.json").read_text())
    assert result["nvml"]["status"] == "failed" and "nvml" in (tmp_path / "gpu" / "nvml.log").read_text()
    second = suite(*given, "--budget", "4m")
    result = json.loads((tmp_path / "gpu" / "jobs.json").read_text())
    assert second.returncode == 0 and {name for name, of in result.items() if of["status"] != "done"} <= {
        "card",
        "nvml",
    }
    assert (tmp_path / "gpu" / "reference.csv").exists() and (tmp_path / "gpu.tar.gz").exists()
    assert json.loads((tmp_path / "gpu" / "airbench.json").read_text())["accuracy"]["mean"] > 0.5
