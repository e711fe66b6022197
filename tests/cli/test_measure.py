"""``edge-sel measure``: the command's own output and status, and its energy."""

import json
import signal
import sys

import pytest

from tests.cli.shell import run as run_in

BUSY = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
ONE_CORE = "print('out'); import sys; print('err', file=sys.stderr)"


def run(*words):
    return run_in(*words, cwd="/")


def measured(*words, code=0, flags=()):
    result = run("measure", "--json", "--idle", "0", *flags, "--", *words)
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout), result


def test_a_busy_command_has_processor_time_and_joules():
    figures, _ = measured(sys.executable, "-c", BUSY)
    assert figures["schema"] == 1 and figures["exit"] == 0
    assert 0.5 <= figures["cpu_s"] < 5 and figures["time_s"] >= 0.4
    energy = figures["energy"]
    assert energy["source"] in ("modelled", "measured") and energy["total_j"] > 0 and energy["net_j"] > 0
    assert energy["net_j"] <= energy["total_j"] + 1
    assert set(figures["temp_c"]) == {"max"}


def test_output_is_left_alone():
    shown = run("measure", "--", sys.executable, "-c", ONE_CORE)
    assert shown.stdout == "out\n" and shown.stderr.startswith("err\n") and "edge-sel measure:" in shown.stderr
    figures, result = measured(sys.executable, "-c", ONE_CORE)
    assert figures["exit"] == 0 and "out" in result.stderr


@pytest.mark.parametrize("code", [0, 3, 75])
def test_status_is_the_commands(code):
    figures, _ = measured("sh", "-c", f"exit {code}", code=code)
    assert figures["exit"] == code


def test_a_killed_command_gives_the_status_of_its_signal():
    figures, _ = measured("sh", "-c", "kill -TERM $$", code=128 + signal.SIGTERM)
    assert figures["exit"] == 128 + signal.SIGTERM


def test_options_of_the_command_are_its_own():
    figures, result = measured("echo", "--json", "-x", "--help")
    assert figures["exit"] == 0 and "--json -x --help" in result.stderr


@pytest.mark.parametrize(
    "words",
    [["--"], [], ["--idle", "nan", "--", "true"], ["--idle", "inf", "--", "true"], ["--meter", "nope", "--", "true"]],
)
def test_mistakes_are_one_line(words):
    result = run("measure", *words)
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


def test_without_a_meter_energy_is_unavailable_not_zero():
    figures, _ = measured("true", flags=("--meter", "nvml"))
    if figures["energy"]["source"] == "measured":
        pytest.skip("this machine has an NVIDIA GPU")
    assert figures["energy"]["source"] == "unavailable"
    assert figures["energy"]["total_j"] is None and figures["energy"]["net_j"] is None
