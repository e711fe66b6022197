"""``edge-sel doctor``: what works here, why not, and how to mend it."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple

import pytest
from click.testing import CliRunner

from edge_sel.cli import doctor
from edge_sel.errors import UsageError
from edge_sel.power import find
from edge_sel.power.find import OPENERS
from edge_sel.power.meter import MeterError
from tests.cli.shell import block, run

SCREEN_LINES = 40


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")
    return path


def test_contract(tmp_path):
    result = run("doctor", "--json", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    report = json.loads(result.stdout)
    assert report["schema"] == 1 and isinstance(report["profile"], str)
    assert [meter["name"] for meter in report["meters"]] == list(OPENERS)
    for meter in report["meters"]:
        assert {"name", "usable", "why", "fix", "power_w", "rails"} <= set(meter) and meter["why"]
        assert meter["usable"] == (meter["power_w"] is not None)
    assert all({"zone", "temp_c"} == set(zone) for zone in report["thermal"])
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert engines["ort"]["usable"] and set(engines) == {"ort", "torch"}
    assert report["profile_why"] == "detected" and report["failed"] == []
    assert report["cpus"]["count"] >= report["cpus"]["allowed"] >= 1 and report["disk"]["free_bytes"] > 0
    assert report["python"].startswith("3.") and report["version"] and report["platform"]
    assert report["container"] is None or set(report["container"]) == {"kind", "sign"}
    assert all({"meter", "usable", "path", "why", "fix"} == set(entry) for entry in report["permissions"])
    assert all({"part", "reason", "now", "count"} == set(entry) for entry in report["throttling"])
    assert all({"zone", "why"} == set(entry) for entry in report["thermal_skipped"])
    assert all(isinstance(hint, str) for hint in report["hints"]) and isinstance(report["wsl"], bool)


def test_profiles(tmp_path):
    report = json.loads(run("profiles", "--json", cwd=tmp_path).stdout)
    names = [profile["name"] for profile in report["profiles"]]
    assert report["schema"] == 1 and report["detected"] in names and "default" in names
    shown = run("profiles", cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout.count("this machine") == 1 and all(n in shown.stdout for n in names)


def test_without_torch(tmp_path):
    result = run("doctor", cwd=tmp_path, PYTHONPATH=block(tmp_path, "torch"))
    assert result.returncode == 0 and "engine torch: not installed" in result.stdout
    assert "profile: " in result.stdout and "meter psutil" in result.stdout


def orin_nano(root):
    """The sysfs of a Jetson Orin Nano that draws 5 W, as JetPack 6 lays it out."""
    chip = root / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    zone = root / "class/thermal/thermal_zone0"
    for folder in (chip, zone):
        folder.mkdir(parents=True)
    rails = {1: ("VDD_IN", 5000, 1000), 2: ("VDD_CPU_GPU_CV", 5000, 400), 3: ("VDD_SOC", 5000, 200)}
    for number, (label, millivolts, milliamperes) in rails.items():
        (chip / f"in{number}_label").write_text(f"{label}\n")
        (chip / f"in{number}_input").write_text(f"{millivolts}\n")
        (chip / f"curr{number}_input").write_text(f"{milliamperes}\n")
    (zone / "type").write_text("tj-thermal\n")
    (zone / "temp").write_text("48500\n")
    return str(root)


def test_a_board_from_a_fixture_tree(tmp_path):
    sysfs = orin_nano(tmp_path / "sys")
    result = run("doctor", "--json", "--profile", "default", cwd=tmp_path, EDGE_SEL_SYSFS_ROOT=sysfs)
    report = json.loads(result.stdout)
    jetson = next(meter for meter in report["meters"] if meter["name"] == "jetson")
    assert jetson["usable"] and abs(jetson["power_w"] - 5.0) < 1e-9
    assert {"name": "VDD_SOC", "power_w": 1.0} in jetson["rails"]
    assert {"zone": "tj-thermal", "temp_c": 48.5} in report["thermal"]


def test_energy_is_measured_on_that_board(tmp_path):
    sysfs = orin_nano(tmp_path / "sys")
    words = ("--json", "--profile", "default", "--idle", "0", "--", "sleep", "1.2")
    figures = json.loads(run("measure", *words, cwd=tmp_path, EDGE_SEL_SYSFS_ROOT=sysfs).stdout)
    energy = figures["energy"]
    assert (energy["source"], energy["meter"]) == ("measured", "jetson")
    assert abs(energy["total_j"] - 5.0 * figures["time_s"]) < 0.5
    assert figures["temp_c"]["max"] == 48.5


# In this process, where what is found can be chosen


def examined(monkeypatch, profile="default", **instead):
    """The report with functions of the doctor replaced by what they would find."""
    quick = {"processors": None, "disk": None, "sensors": [], "surroundings": {"container": None, "wsl": False}}
    for name, value in {**quick, **instead}.items():
        monkeypatch.setattr(doctor, name, lambda value=value: value)
    monkeypatch.setattr(doctor, "ENGINES", {})
    return doctor.examine(profile)


def shown(report, capsys):
    doctor.show(report)
    return capsys.readouterr().out


def crash(*_, **__):
    raise RuntimeError("it broke")


PARTS = ("processors", "disk", "surroundings", "meter", "permissions", "zones", "sensors", "throttling", "hints")


@pytest.mark.parametrize("broken", [*((part,) for part in PARTS), PARTS], ids=lambda broken: "-".join(broken)[:12])
def test_a_part_that_crashes_is_a_line(monkeypatch, broken):
    for part in broken:
        monkeypatch.setattr(doctor, part, crash)
    result = CliRunner().invoke(doctor.command, [])
    assert result.exit_code == 0 and "engine ort: onnxruntime" in result.output, result.output
    assert result.output.count("could not be looked at: RuntimeError: it broke") >= len(broken)
    report = json.loads(CliRunner().invoke(doctor.command, ["--json"]).output)
    assert [meter["name"] for meter in report["meters"]] == list(OPENERS) and len(report["failed"]) >= len(broken)


def test_engines_that_crash(monkeypatch):
    monkeypatch.setattr(doctor, "ENGINES", {"ort": crash, "torch": crash})
    result = CliRunner().invoke(doctor.command, [])
    assert result.exit_code == 0 and "no   engine ort: could not be looked at" in result.output


def test_an_engine_that_does_not_run_says_why(monkeypatch):
    monkeypatch.setattr("edge_sel.pack.builtin.builtin_pack", crash)
    assert doctor.ort() == {"name": "ort", "usable": False, "why": "it broke"}


def test_a_profile_that_cannot_be_detected(monkeypatch, capsys):
    monkeypatch.setattr("edge_sel.config.profiles.detect_profile", crash)
    report = examined(monkeypatch, profile=None)
    assert report["profile"] == "default" and "could be detected" in report["profile_why"]
    assert report["failed"] == [{"part": "profile", "why": "RuntimeError: it broke"}]


def test_a_profile_that_is_given(monkeypatch, capsys):
    report = examined(monkeypatch, profile="laptop")
    assert "profile: laptop (given by --profile)" in shown(report, capsys)
    with pytest.raises(UsageError, match="did you mean laptop"):
        examined(monkeypatch, profile="labtop")


def test_a_meter_is_given_back_when_its_rails_crash(monkeypatch):
    closed = []

    class Broken:
        readings = crash

        def close(self):
            closed.append(True)

    probe = find.Probe("jetson", True, "works", None, 5.0)
    monkeypatch.setattr(find, "find_meter", lambda device, name: (Broken(), [probe]))
    with pytest.raises(RuntimeError):
        doctor.meter(None, "jetson")
    assert closed


def test_docker_hides_the_counters(monkeypatch, tmp_path, capsys):
    sysfs = tmp_path / "sys"
    zone = sysfs / "devices/virtual/powercap/intel-rapl/intel-rapl:0"
    put(zone / "name", "package-0")
    link = sysfs / "class/powercap/intel-rapl:0"
    link.parent.mkdir(parents=True)
    link.symlink_to(zone)
    shutil.rmtree(zone)
    monkeypatch.setenv("EDGE_SEL_SYSFS_ROOT", str(sysfs))
    report = examined(monkeypatch)
    (entry,) = [entry for entry in report["permissions"] if entry["meter"] == "rapl"]
    assert not entry["usable"] and "-v /sys:/host/sys:ro" in entry["fix"]
    lines = shown(report, capsys).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("no   meter rapl"))
    assert lines[at + 1] == f"      to mend it: {entry['fix']}", "the meter's own remedy is the general one"


def test_counters_of_root_alone(monkeypatch, capsys):
    refused = MeterError("no permission to read energy_uj", "something general")
    monkeypatch.setattr(
        find, "find_meter", lambda d, name: (None, [find.Probe(name, False, refused.reason, refused.fix)])
    )
    fix = {"meter": "rapl", "usable": False, "path": "/sys/x", "why": "Permission denied", "fix": "exactly this"}
    fine = {"meter": "battery", "usable": True, "path": "/sys/y", "why": "can be read", "fix": None}
    text = shown(examined(monkeypatch, permissions=[fix, fine]), capsys)
    assert text.count("to mend it: exactly this") == 1 and text.count("to mend it: something general") == 4


def test_in_a_container_the_host_must_permit(monkeypatch):
    asked = []
    monkeypatch.setattr("edge_sel.power.access.find_container", lambda: "box")
    monkeypatch.setattr("edge_sel.power.access.permissions", lambda *_, container: asked.append(container) or [])
    assert doctor.permissions() == [] and asked == ["box"]


def test_a_permission_that_a_working_meter_does_not_need(monkeypatch, capsys):
    fix = {"meter": "psutil", "usable": False, "path": "/sys/x", "why": "Permission denied", "fix": "exactly this"}
    assert "exactly this" not in shown(examined(monkeypatch, permissions=[fix]), capsys)


def test_zones_that_do_not_count(monkeypatch, tmp_path, capsys):
    for number, (name, temp) in enumerate([("tj-thermal", 48500), ("PMIC-Die", 100000), ("cv0-thermal", -256000)]):
        put(tmp_path / f"class/thermal/thermal_zone{number}/type", name)
        put(tmp_path / f"class/thermal/thermal_zone{number}/temp", temp)
    monkeypatch.setenv("EDGE_SEL_SYSFS_ROOT", str(tmp_path))
    report = examined(monkeypatch)
    assert {skipped["zone"] for skipped in report["thermal_skipped"]} == {"PMIC-Die", "cv0-thermal"}
    text = shown(report, capsys)
    assert "temperature tj-thermal: 48.5 °C" in text and "temperature cv0-thermal does not count: tells -256 °C" in text


def test_throttling(monkeypatch, tmp_path, capsys):
    bits = put(tmp_path / "devices/platform/soc/soc:firmware/get_throttled", "50001")
    monkeypatch.setenv("EDGE_SEL_SYSFS_ROOT", str(tmp_path))
    report = examined(monkeypatch)
    assert {"part": "Raspberry Pi", "reason": "under-voltage", "now": True, "count": 1} in report["throttling"]
    text = shown(report, capsys)
    assert "slow Raspberry Pi: under-voltage, now\n" in text
    assert "    Raspberry Pi: throttled since it was started\n" in text and "frequency capped" not in text
    put(bits, "0")
    put(tmp_path / "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "7")
    text = shown(examined(monkeypatch), capsys)
    assert "Raspberry Pi" not in text and "slowed by heat since it was started, 7 times" in text


Found = namedtuple("Found", "quota allowed threads told")
QUOTAS = [
    Found(1.5, 4, None, "--threads 1"), Found(2.7, 4, None, "--threads 2"), Found(0.2, 4, None, "--threads 1"),
    Found(4.0, 4, None, None), Found(6.0, 4, None, None), Found(None, 4, None, None),
    Found(2.0, 4, 2, None), Found(1.5, 4, 2, "--threads 1"), Found(2.0, 4, 0, "--threads 2"),
]  # fmt: skip


@pytest.mark.parametrize("found", QUOTAS, ids=str)
def test_threads_beyond_the_quota(monkeypatch, tmp_path, found):
    threads = "" if found.threads is None else f"\n[runtime]\nthreads = {found.threads}"
    profile = put(tmp_path / "mine.toml", f"[power]\nidle_w = 1\nmax_w = 2{threads}")
    cpus = {"count": 8, "allowed": found.allowed, "quota": found.quota}
    told = [hint for hint in examined(monkeypatch, str(profile), processors=cpus)["hints"] if "--threads" in hint]
    assert len(told) == (found.told is not None) and all(found.told in hint for hint in told)


@pytest.mark.parametrize(("free", "told"), [(499_999_999, True), (500_000_000, False)])
def test_a_full_disk(monkeypatch, free, told):
    report = examined(monkeypatch, disk={"path": "/data", "free_bytes": free})
    assert any("/data" in hint and "free" in hint for hint in report["hints"]) == told


@pytest.mark.parametrize("moved", [False, True])
def test_the_hosts_sensors_are_asked_for_once(monkeypatch, tmp_path, capsys, moved):
    docker = {"container": {"kind": "docker", "sign": "/.dockerenv is there"}, "wsl": False}
    if moved:
        monkeypatch.setenv("EDGE_SEL_SYSFS_ROOT", str(tmp_path))
    else:
        monkeypatch.delenv("EDGE_SEL_SYSFS_ROOT", raising=False)
    probes = lambda device, name: (None, [find.Probe(name, name in ("psutil", "nvml"), "told")])  # noqa: E731
    monkeypatch.setattr(find, "find_meter", probes)
    report = examined(monkeypatch, surroundings=docker)
    assert any("-v /sys:/host/sys:ro" in hint for hint in report["hints"]) == (not moved)
    text = shown(report, capsys)
    assert ("\nhint if the host has power sensors" in text) == (not moved) and "None" not in text


def test_a_container_with_a_meter_needs_nothing(monkeypatch, tmp_path, capsys):
    docker = {"container": {"kind": "docker", "sign": "/.dockerenv is there"}, "wsl": False}
    monkeypatch.delenv("EDGE_SEL_SYSFS_ROOT", raising=False)
    works = lambda device, name: (None, [find.Probe(name, name == "rapl", "works", None, 5.0)])  # noqa: E731
    monkeypatch.setattr(find, "find_meter", works)
    report = examined(monkeypatch, surroundings=docker)
    assert not any("/host/sys" in hint for hint in report["hints"])
    assert "container: docker (/.dockerenv is there)" in shown(report, capsys)


def test_it_is_one_screen(tmp_path):
    sysfs = orin_nano(tmp_path / "sys")
    text = run("doctor", cwd=tmp_path, EDGE_SEL_SYSFS_ROOT=sysfs).stdout
    assert len(text.splitlines()) <= SCREEN_LINES and text.startswith("edge-sel ")


def test_what_is_counted():
    counted = doctor.processors()
    assert counted["count"] == os.cpu_count() and 1 <= counted["allowed"] <= counted["count"]
