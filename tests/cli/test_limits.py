"""Limits on the command line: their units, what is refused before anything starts, and how a run that they end leaves."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edge_sel.cli.show import governor_line
from edge_sel.errors import EXIT_STOPPED_RESUMABLE
from tests.cli.shell import SETUP, USAGE, refused
from tests.edge.sessions import tree

SHORT = ["--plan", "bn", "--threads", 1, "--meter", "psutil", "--profile", "cloud-vm", "--out", "run"]


@pytest.fixture
def board(here, monkeypatch):
    """Call it to get a sysfs tree, of a board without battery and thermometer unless told otherwise."""
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    root = here / "sys"
    monkeypatch.setenv("EDGE_SEL_SYSFS_ROOT", str(root))

    def put(folder, **files):
        (root / folder).mkdir(parents=True)
        for name, value in files.items():
            (root / folder / name).write_text(f"{value}\n")

    def make(*, temp_c=None, battery=None):
        root.mkdir()
        if temp_c is not None:
            put("class/thermal/thermal_zone0", type="cpu-thermal", temp=round(1000 * temp_c))
        if battery is not None:
            put("class/power_supply/BAT0", type="Battery", status="Discharging", capacity=battery)
        return root

    return make


def settings(result):
    return {key: entry["value"] for key, entry in json.loads(result.out)["settings"].items()}


# Units


def test_every_limit_with_its_unit(edge_sel, board, monkeypatch):
    """On a board with all the sensors, and so wide that none of them binds."""
    board(temp_c=45.0, battery=80)
    noon = time.struct_time((2026, 1, 1, 12, 0, 0, 3, 1, 0))
    monkeypatch.setattr(time, "localtime", lambda *_: noon)
    result = edge_sel(
        "finetune", "--json", *SHORT, "--energy-budget", "0.2kWh", "--max-temp", "99 °C", "--battery-floor", "20%",
        "--deadline", "1h30m", "--power-cap", "1kW", "--quiet-hours", "22:00-07:00",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads(result.out)["stopped"] == "done"
    assert settings(result).items() >= {
        "energy_budget_j": 720_000.0, "max_temp_c": 99.0, "battery_floor": 0.2, "deadline_s": 5400.0,
        "power_cap_w": 1000.0, "quiet_hours": "22:00-07:00", "on_ac_only": False,
    }.items()  # fmt: skip


def test_on_ac_only_where_nothing_tells_of_a_battery(edge_sel, board):
    board()
    result = edge_sel("finetune", "--json", *SHORT, "--on-ac-only")
    assert result.code == 0 and settings(result)["on_ac_only"] is True


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--energy-budget", "500", ["energy_budget_j", "500J"]),
        ("--energy-budget", "500mj", ["energy_budget_j", "500J"]),
        ("--max-temp", "75", ["max_temp_c", "75C"]),
        ("--max-temp", "75F", ["max_temp_c", "75C"]),
        ("--battery-floor", "20", ["battery_floor", "20%"]),
        ("--deadline", "30", ["deadline_s", "30m"]),
        ("--power-cap", "8", ["power_cap_w", "8W"]),
        ("--quiet-hours", "22-7", ["quiet_hours", "22:00-07:00"]),
        ("--on-ac-only=1", None, ["--on-ac-only"]),
    ],
)
def test_a_bare_number_is_refused(flag, value, words, edge_sel, here):
    """Five hundred of what? A guess would be wrong by a thousand."""
    refused(edge_sel("finetune", *SHORT, flag, *([] if value is None else [value])), USAGE, *words)
    assert list(here.iterdir()) == []


def test_help_shows_an_example_of_every_limit(edge_sel):
    shown = re.sub(r"\s+", " ", edge_sel("finetune", "--help").out)
    for example in (
        "--energy-budget 500J", "--max-temp 75C", "--battery-floor 20%", "--deadline 30m", "--power-cap 8W",
        "--quiet-hours 22:00-07:00", "--on-ac-only",
    ):  # fmt: skip
        assert example in shown


# The temperature of the profile


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("given", "max_c", "origin"),
    [
        ([], 78.0, "profile:raspberry-pi-5"),
        (["--max-temp", "none"], None, "flag"),
        (["--max-temp", "60C"], 60.0, "flag"),
    ],
)
def test_the_ceiling_of_the_profile_is_overruled(given, max_c, origin, edge_sel, board):
    board(temp_c=45.0)
    result = edge_sel("finetune", "--json", *SHORT, "--profile", "raspberry-pi-5", *given)
    assert result.code == 0, result.err
    assert json.loads(result.out)["settings"]["max_temp_c"] == {"value": max_c, "origin": origin}


# Missing sensors

MISSING = {
    "no thermometer": (["--max-temp", "75C"], ["no temperature", "--max-temp", "doctor"]),
    "no battery": (["--battery-floor", "20%"], ["no battery", "--battery-floor"]),
    "no meter for a budget": (["--meter", "battery", "--energy-budget", "500J"], ["no meter", "--energy-budget"]),
    "no meter for a cap": (["--meter", "battery", "--power-cap", "8W"], ["no meter", "--power-cap"]),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_limit_that_cannot_be_watched_is_refused(case, edge_sel, board, here):
    """Before anything is written."""
    board()
    given, words = MISSING[case]
    refused(edge_sel("finetune", *SHORT, *given), SETUP, *words)
    assert [path.name for path in here.iterdir()] == ["sys"]


def test_the_ceiling_of_a_profile_may_go_unwatched(edge_sel, board):
    """It was not asked for."""
    board()
    result = edge_sel("finetune", "--json", *SHORT, "--profile", "raspberry-pi-5")
    assert result.code == 0 and settings(result)["max_temp_c"] == 78.0


def test_a_thermometer_may_take_a_moment(edge_sel, board, monkeypatch):
    """A modelled meter needs no idle seconds, in which it would have answered for the first time."""
    board()

    def slow():
        time.sleep(0.3)
        return {"chip": [SimpleNamespace(label="", current=45.0)]}

    monkeypatch.setattr(psutil, "sensors_temperatures", slow, raising=False)
    result = edge_sel("finetune", "--json", *SHORT, "--max-temp", "75C")
    assert result.code == 0, result.err


def test_a_cap_below_what_the_idle_device_draws(edge_sel, board, here):
    board()
    refused(edge_sel("finetune", *SHORT, "--power-cap", "3W"), USAGE, "--power-cap", "3 W", "raise it")
    assert [path.name for path in here.iterdir()] == ["sys"]


# Runs that a limit ends


def test_a_budget_that_is_spent_and_raised(edge_sel, here):
    result = edge_sel("finetune", "--json", *SHORT, "--energy-budget", "1mJ")
    assert result.code == EXIT_STOPPED_RESUMABLE == 75 and result.err == ""
    summary = json.loads(result.out)
    assert summary["stopped"] == "budget" and summary == json.loads((here / "run" / "run.json").read_text())
    assert (here / "run" / "model.onnx").exists() and summary["epochs"] == []
    refused(edge_sel("finetune", *SHORT, "--energy-budget", "1MJ"), USAGE, "--resume")
    result = edge_sel("finetune", "--json", *SHORT, "--resume", "--energy-budget", "1MJ")
    summary = json.loads(result.out)
    assert result.code == 0 and summary["stopped"] == "done" and len(summary["epochs"]) == 1


def test_what_a_person_sees(edge_sel, here):
    result = edge_sel("finetune", *SHORT, "--energy-budget", "1mJ")
    assert result.code == 75
    assert re.search(
        r"governor: ends the run for the energy budget \(.* of 1 mJ spent, .* kept for the end\)", result.err
    )
    assert "stopped (budget); the same command with --resume --out run continues" in result.out
    recorded = [json.loads(line) for line in (here / "run" / "events.jsonl").read_text().splitlines()]
    (decision,) = [event for event in recorded if event["event"] == "governor"]
    assert decision["action"] == "stop" and decision["limit"] == "energy budget"


def test_a_deadline_leaves_a_run_that_can_be_resumed(edge_sel, here):
    result = edge_sel("finetune", "--json", *SHORT, "--deadline", "1ms")
    assert result.code == 75 and json.loads(result.out)["stopped"] == "deadline"


def test_a_battery_that_is_low_already(edge_sel, board):
    board(battery=15)
    result = edge_sel("finetune", "--json", *SHORT, "--battery-floor", "20%")
    assert result.code == 75 and json.loads(result.out)["stopped"] == "battery"


# Other layers


@pytest.mark.slow
def test_a_budget_from_a_file_is_lifted_by_a_flag(edge_sel, here):
    Path("mine.toml").write_text('energy_budget_j = "1mJ"\ndeadline_s = 3600\n')
    result = edge_sel("finetune", "--json", *SHORT, "--config", "mine.toml")
    summary = json.loads(result.out)
    assert result.code == 75 and summary["stopped"] == "budget"
    assert summary["settings"]["energy_budget_j"] == {"value": 0.001, "origin": "file:mine.toml"}
    assert summary["settings"]["deadline_s"]["value"] == 3600.0
    lifted = edge_sel("finetune", "--json", *SHORT, "--config", "mine.toml", "--resume", "--energy-budget", "none")
    assert lifted.code == 0


def test_a_budget_from_the_environment_needs_its_unit_too(edge_sel, here, monkeypatch):
    monkeypatch.setenv("EDGE_SEL_ENERGY_BUDGET_J", "1mJ")
    result = edge_sel("finetune", "--json", *SHORT)
    assert result.code == 75 and json.loads(result.out)["stopped"] == "budget"
    before = tree(here / "run")
    monkeypatch.setenv("EDGE_SEL_ENERGY_BUDGET_J", "500")
    refused(edge_sel("finetune", *SHORT, "--resume"), USAGE, "energy_budget_j", "EDGE_SEL_ENERGY_BUDGET_J", "500J")
    assert tree(here / "run") == before


# What decisions look like


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"action": "pressure", "pressure": 0.4, "why": "60 J left"}, "energy pressure 40% for the heat (60 J left)"),
        ({"action": "duty", "duty": 0.25, "why": "70 °C"}, "works 25% of the time for the heat (70 °C)"),
        ({"action": "pause", "pressure": 0.4, "why": "70 °C"}, "pauses for the heat (70 °C)"),
        ({"action": "resume", "paused_s": 90.0, "duty": 0.5}, "resumed after 1m30s at 50% of the time"),
        ({"action": "stop", "pressure": 0.0, "why": ""}, "ends the run for the heat"),
    ],
)
def test_a_decision_on_one_line(event, line):
    assert governor_line({"event": "governor", "limit": "heat", **event}) == f"governor: {line}"
