"""``edge-sel doctor``: what works here, why not, and how to fix it."""

from __future__ import annotations

import json

import pytest

from edge_sel.power.find import METER_KINDS
from tests.cli.shell import block, run

SCREEN_LINES = 40


@pytest.fixture
def on_board(edge_sel, monkeypatch):
    """``edge-sel`` in this process, on the machine of this tree."""

    def call(*words, root, **environ):
        for name, value in {"EDGE_SEL_SYSFS_ROOT": root, **environ}.items():
            monkeypatch.setenv(name, value)
        return edge_sel(*words)

    return call


def test_the_report_has_the_keys_of_the_contract(tmp_path, on_board):
    """On a board and in a container that have an entry for each list of the report."""
    sysfs = tmp_path / "sys"
    put(sysfs / "class/thermal/thermal_zone1", type="PMIC-Die", temp=100_000)
    put(sysfs / "devices/system/cpu/cpu0/thermal_throttle", core_throttle_count=7)
    result = on_board("doctor", "--json", root=orin_nano(sysfs), container="lxc")
    assert result.code == 0 and result.err == ""
    report = json.loads(result.out)
    assert report["schema"] == 1 and isinstance(report["profile"], str)
    assert [meter["name"] for meter in report["meters"]] == list(METER_KINDS)
    for meter in report["meters"]:
        assert {"name", "usable", "why", "fix", "power_w", "rails"} <= set(meter) and meter["why"]
        assert meter["usable"] == (meter["power_w"] is not None)
    lists = {
        "thermal": {"zone", "temp_c"},
        "permissions": {"meter", "usable", "path", "why", "fix"},
        "throttling": {"part", "reason", "now", "count"},
        "thermal_skipped": {"zone", "why"},
    }
    for key, keys in lists.items():
        assert report[key] and all(set(entry) == keys for entry in report[key]), key
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert engines["ort"]["usable"] and set(engines) == {"ort", "ort-training", "torch"}
    assert report["profile_why"] == "detected" and report["failed"] == []
    assert report["cpus"]["count"] >= report["cpus"]["allowed"] >= 1 and report["disk"]["free_bytes"] > 0
    assert report["python"].startswith("3.") and report["version"] and report["platform"]
    assert set(report["container"]) == {"kind", "sign"}
    assert all(isinstance(hint, str) for hint in report["hints"]) and isinstance(report["wsl"], bool)


def test_profiles_are_listed_and_one_is_this_machine(edge_sel):
    report = json.loads(edge_sel("profiles", "--json").out)
    names = [profile["name"] for profile in report["profiles"]]
    assert report["schema"] == 1 and report["detected"] in names and "default" in names
    shown = edge_sel("profiles")
    assert shown.code == 0 and shown.out.count("this machine") == 1 and all(n in shown.out for n in names)


def test_without_torch_the_rest_is_reported(tmp_path):
    result = run("doctor", cwd=tmp_path, PYTHONPATH=block(tmp_path, "torch"))
    assert result.returncode == 0 and "engine torch: not installed" in result.stdout
    assert "profile: " in result.stdout and "meter psutil" in result.stdout


def test_an_engine_that_does_not_run_says_why(tmp_path):
    result = run("doctor", "--json", cwd=tmp_path, PYTHONPATH=block(tmp_path, "onnxruntime"))
    ort = json.loads(result.stdout)["engines"][0]
    assert ort == {"name": "ort", "usable": False, "why": "No module named 'onnxruntime'"}


def put(folder, **files):
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def orin_nano(root):
    """The sysfs of a Jetson Orin Nano that draws 5 W, as JetPack 6 lays it out."""
    chip = root / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    chip.mkdir(parents=True)
    rails = {1: ("VDD_IN", 5000, 1000), 2: ("VDD_CPU_GPU_CV", 5000, 400), 3: ("VDD_SOC", 5000, 200)}
    for number, (label, millivolts, milliamperes) in rails.items():
        (chip / f"in{number}_label").write_text(f"{label}\n")
        (chip / f"in{number}_input").write_text(f"{millivolts}\n")
        (chip / f"curr{number}_input").write_text(f"{milliamperes}\n")
    put(root / "class/thermal/thermal_zone0", type="tj-thermal", temp=48_500)
    return str(root)


def test_a_board_from_a_fixture_tree(tmp_path, on_board):
    sysfs = orin_nano(tmp_path / "sys")
    report = json.loads(on_board("doctor", "--json", "--profile", "default", root=sysfs).out)
    jetson = next(meter for meter in report["meters"] if meter["name"] == "jetson")
    assert jetson["usable"] and abs(jetson["power_w"] - 5.0) < 1e-9
    assert {"name": "VDD_SOC", "power_w": 1.0} in jetson["rails"]
    assert {"zone": "tj-thermal", "temp_c": 48.5} in report["thermal"]


def test_energy_is_measured_on_that_board(tmp_path, on_board):
    sysfs = orin_nano(tmp_path / "sys")
    words = ("--json", "--profile", "default", "--idle", "0", "--", "sleep", "1.2")
    figures = json.loads(on_board("measure", *words, root=sysfs).out)
    energy = figures["energy"]
    assert (energy["source"], energy["meter"]) == ("measured", "jetson")
    assert abs(energy["total_j"] - 5.0 * figures["time_s"]) < 0.5
    assert figures["temp_c"]["max"] == 48.5


def test_the_report_is_one_screen(tmp_path):
    sysfs = orin_nano(tmp_path / "sys")
    text = run("doctor", cwd=tmp_path, EDGE_SEL_SYSFS_ROOT=sysfs).stdout
    assert len(text.splitlines()) <= SCREEN_LINES and text.startswith("edge-sel ")
