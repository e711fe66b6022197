"""What ``edge-sel doctor`` reports of a machine that trees of files and devices make up, in this process."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from edge_sel.cli.doctor import examine, print_report
from edge_sel.errors import UsageError
from edge_sel.power.find import METER_KINDS
from edge_sel.power.meter import MeterError, Reading


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")
    return path


class Steady:
    """A device that draws 5 W."""

    source, min_window_s = "measured", 0.0

    def __init__(self, name, readings=list):
        self.name, self.readings, self.closed = name, readings, False

    def read(self, now_s):
        return Reading(now_s, None, 5.0)

    def close(self):
        self.closed = True


class Machine:
    """``root`` stands in for ``/``; of the meters those work that were plugged in, and the modelled one."""

    def __init__(self, root, monkeypatch):
        self.root, self.monkeypatch = root, monkeypatch
        root.mkdir()
        for name in METER_KINDS:
            if name != "psutil":
                monkeypatch.setattr(METER_KINDS[name], "open", self.absent)

    @staticmethod
    def absent(profile):
        raise MeterError("not here", "something general")

    def plug_in(self, meter):
        self.monkeypatch.setattr(METER_KINDS[meter.name], "open", lambda profile: meter)
        return meter

    def put(self, path, text=""):
        return put(self.root / path, text)

    def report(self, profile="default"):
        return examine(profile, self.root)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("EDGE_SEL_")]:
        monkeypatch.delenv(name)
    for name in ("container", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    return Machine(tmp_path / "root", monkeypatch)


def shown(report, capsys):
    print_report(report)
    return capsys.readouterr().out


def crash(*_, **__):
    raise RuntimeError("it broke")


def crash_below(machine, monkeypatch, owner, name):
    """As if the system broke down whenever that is asked about a file of the machine."""
    original = getattr(owner, name)

    def call(path, *rest, **more):
        return (crash if str(path).startswith(str(machine.root)) else original)(path, *rest, **more)

    monkeypatch.setattr(owner, name, call)


HARMS = [
    (["processors"], lambda m, machine: m.setattr(os, "cpu_count", crash)),
    (["disk"], lambda m, machine: m.setattr(shutil, "disk_usage", crash)),
    (["platform"], lambda m, machine: m.setattr(platform, "system", crash)),
    (["psutil's temperatures"], lambda m, machine: m.setattr(psutil, "sensors_temperatures", crash, raising=False)),
    (["meter jetson"], lambda m, machine: machine.plug_in(Steady("jetson", crash))),
    (
        ["profile", "permissions", "temperatures", "throttling"],
        lambda m, machine: crash_below(machine, m, Path, "glob"),
    ),
    (
        ["profile", "processors", "surroundings", "permissions", "hints"],
        lambda m, machine: crash_below(machine, m, os, "open"),
    ),
]
"""What the system may fail at, and the parts of the report that are not known then."""


@pytest.mark.parametrize("harms", [*([harm] for harm in HARMS), HARMS], ids=lambda harms: "".join(harms[-1][0]))
def test_a_part_that_crashes_is_a_line(machine, monkeypatch, capsys, harms):
    with monkeypatch.context() as patched:
        for _, harm in harms:
            harm(patched, machine)
        report = machine.report(profile=None)
    assert {entry["part"] for entry in report["failed"]} == {part for parts, _ in harms for part in parts}
    assert all(entry["why"] == "RuntimeError: it broke" for entry in report["failed"])
    assert [meter["name"] for meter in report["meters"]] == list(METER_KINDS)
    text = shown(report, capsys)
    assert "engine ort: onnxruntime" in text
    assert text.count("could not be looked at: RuntimeError: it broke") == len(report["failed"])


def test_an_engine_that_crashes(machine, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # half imported: nobody knows where from
    assert "no   engine torch: could not be looked at" in shown(machine.report(), capsys)


def test_a_profile_that_cannot_be_detected(machine, monkeypatch):
    crash_below(machine, monkeypatch, Path, "glob")
    report = machine.report(profile=None)
    assert report["profile"] == "default" and "could be detected" in report["profile_why"]
    assert {"part": "profile", "why": "RuntimeError: it broke"} in report["failed"]


def test_a_profile_that_is_given(machine, capsys):
    assert "profile: laptop (given by --profile)" in shown(machine.report("laptop"), capsys)
    with pytest.raises(UsageError, match="did you mean laptop"):
        machine.report("labtop")


def test_a_meter_is_given_back_when_its_rails_crash(machine):
    broken = machine.plug_in(Steady("jetson", crash))
    (entry,) = [meter for meter in machine.report()["meters"] if meter["name"] == "jetson"]
    assert broken.closed and not entry["usable"] and entry["rails"] == []


def hide_counters(machine):
    """The links to RAPL's counters lead nowhere, as in a container of Docker."""
    link = machine.root / "sys/class/powercap/intel-rapl:0"
    link.parent.mkdir(parents=True)
    link.symlink_to(machine.root / "sys/devices/virtual/powercap/intel-rapl/intel-rapl:0")


def permission(report, meter):
    (entry,) = [entry for entry in report["permissions"] if entry["meter"] == meter]
    return entry


def test_docker_hides_the_counters(machine, capsys):
    hide_counters(machine)
    report = machine.report()
    entry = permission(report, "rapl")
    assert not entry["usable"] and "-v /sys:/host/sys:ro" in entry["fix"]
    lines = shown(report, capsys).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("no   meter rapl"))
    assert lines[at + 1] == f"      to fix it: {entry['fix']}", "the meter's own remedy is the general one"


def test_counters_of_root_alone(machine, capsys):
    fix = {"meter": "rapl", "usable": False, "path": "/sys/x", "why": "Permission denied", "fix": "exactly this"}
    fine = {"meter": "battery", "usable": True, "path": "/sys/y", "why": "can be read", "fix": None}
    text = shown({**machine.report(), "permissions": [fix, fine]}, capsys)
    assert text.count("to fix it: exactly this") == 1 and text.count("to fix it: something general") == 3


def test_in_a_container_the_host_must_permit(machine, monkeypatch):
    hide_counters(machine)
    monkeypatch.setenv("container", "lxc")
    assert "mount the host's /sys into the container" in permission(machine.report(), "rapl")["fix"]


def test_a_permission_that_a_working_meter_does_not_need(machine, capsys):
    fix = {"meter": "psutil", "usable": False, "path": "/sys/x", "why": "Permission denied", "fix": "exactly this"}
    assert "exactly this" not in shown({**machine.report(), "permissions": [fix]}, capsys)


def test_zones_that_do_not_count(machine, capsys):
    for number, (name, temp) in enumerate([("tj-thermal", 48500), ("PMIC-Die", 100000), ("cv0-thermal", -256000)]):
        machine.put(f"sys/class/thermal/thermal_zone{number}/type", name)
        machine.put(f"sys/class/thermal/thermal_zone{number}/temp", temp)
    report = machine.report()
    assert {skipped["zone"] for skipped in report["thermal_skipped"]} == {"PMIC-Die", "cv0-thermal"}
    text = shown(report, capsys)
    assert (
        "temperature tj-thermal: 48.5 °C" in text and "temperature cv0-thermal does not count: reports -256 °C" in text
    )


def test_the_sensors_of_psutil(machine, monkeypatch, capsys):
    known, silent = SimpleNamespace(label="", current=41.0), SimpleNamespace(label="Core 0", current=None)
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: {"coretemp": [known, silent]}, raising=False)
    report = machine.report()
    assert report["thermal"] == [{"zone": "coretemp", "temp_c": 41.0}]
    assert "no   temperature sensor can be read" not in shown(report, capsys)
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    assert "no   temperature sensor can be read" in shown(machine.report(), capsys)


def test_throttling_now_and_since_the_start_is_told(machine, capsys):
    bits = machine.put("sys/devices/platform/soc/soc:firmware/get_throttled", "50001")
    report = machine.report()
    assert {"part": "Raspberry Pi", "reason": "under-voltage", "now": True, "count": 1} in report["throttling"]
    text = shown(report, capsys)
    assert "slow Raspberry Pi: under-voltage, now\n" in text
    assert "    Raspberry Pi: throttled since it was started\n" in text and "frequency capped" not in text
    put(bits, "0")
    machine.put("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "7")
    text = shown(machine.report(), capsys)
    assert "Raspberry Pi" not in text and "slowed by heat since it was started, 7 times" in text


Found = namedtuple("Found", "quota allowed threads hint")
QUOTAS = [
    Found(1.5, 4, None, "--threads 1"), Found(2.7, 4, None, "--threads 2"), Found(0.2, 4, None, "--threads 1"),
    Found(4.0, 4, None, None), Found(6.0, 4, None, None), Found(None, 4, None, None),
    Found(2.0, 4, 2, None), Found(1.5, 4, 2, "--threads 1"), Found(2.0, 4, 0, "--threads 2"),
]  # fmt: skip


@pytest.mark.parametrize("found", QUOTAS, ids=str)
def test_threads_beyond_the_quota(machine, monkeypatch, tmp_path, found):
    threads = "" if found.threads is None else f"\n[runtime]\nthreads = {found.threads}"
    profile = put(tmp_path / "mine.toml", f"[power]\nidle_w = 1\nmax_w = 2{threads}")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(found.allowed)), raising=False)
    if found.quota is not None:
        machine.put("sys/fs/cgroup/cpu.max", f"{round(100_000 * found.quota)} 100000")
    report = machine.report(str(profile))
    assert report["cpus"] == {"count": 8, "allowed": found.allowed, "quota": found.quota}
    hints = [hint for hint in report["hints"] if "--threads" in hint]
    assert len(hints) == (found.hint is not None) and all(found.hint in hint for hint in hints)


@pytest.mark.parametrize(("free", "expected"), [(499_999_999, True), (500_000_000, False)])
def test_a_disk_that_is_nearly_full_is_told(machine, monkeypatch, tmp_path, free, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    report = machine.report()
    assert report["disk"] == {"path": str(tmp_path), "free_bytes": free}
    assert any(str(tmp_path) in hint and "free" in hint for hint in report["hints"]) == expected


@pytest.mark.parametrize("moved", [False, True])
def test_the_hosts_sensors_are_asked_for_once(machine, monkeypatch, capsys, moved):
    machine.put(".dockerenv")
    machine.plug_in(Steady("nvml"))
    if moved:
        monkeypatch.setenv("EDGE_SEL_SYSFS_ROOT", str(machine.root / "sys"))
    report = machine.report()
    assert any("-v /sys:/host/sys:ro" in hint for hint in report["hints"]) == (not moved)
    text = shown(report, capsys)
    assert ("\nhint if the host has power sensors" in text) == (not moved) and "None" not in text


def test_a_container_with_a_meter_needs_nothing(machine, capsys):
    machine.put(".dockerenv")
    machine.plug_in(Steady("rapl"))
    report = machine.report()
    assert not any("/host/sys" in hint for hint in report["hints"])
    assert "container: docker (/.dockerenv is there)" in shown(report, capsys)


def test_the_processors_of_this_machine_are_counted(machine):
    counted = machine.report()["cpus"]
    assert counted["count"] == os.cpu_count() and 1 <= counted["allowed"] <= counted["count"]
