"""What keeps a process from its sensors, from trees that stand in for ``/`` and ``/sys``."""

from __future__ import annotations

import grp
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from power_fakes import write

from edge_sel.power import access
from edge_sel.power.access import (
    MOUNT,
    RAPL_FIX,
    RAPL_RULE,
    Container,
    hints,
    permissions,
    refusal,
)

DEPLOY = Path(access.__file__).parent.parent.parent / "deploy"
DOCKER = Container("docker", "/.dockerenv is there")


def rapl(sysfs: Path) -> dict[str, Path]:
    """Two zones that are counted and two that are not, behind links as the kernel makes them."""
    found = {}
    for zone, name in {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "psys"}.items():
        folder = sysfs / f"devices/virtual/powercap/intel-rapl/intel-rapl:{zone}"
        found[name] = write(folder / "energy_uj")
        write(folder / "name", f"{name}")
        link = sysfs / f"class/powercap/intel-rapl:{zone}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(folder, link.parent))
    return found


def denying(*names: str):
    """Refuses the files whose path has one of these in it."""
    return lambda path: "Permission denied" if any(name in str(path.resolve()) for name in names) else None


def look(tmp_path: Path, **given) -> dict[str, access.Access]:
    found = permissions(tmp_path, tmp_path / "sys", **given)
    assert len({entry.meter for entry in found}) == len(found)
    return {entry.meter: entry for entry in found}


def test_a_machine_without_sensors_needs_no_permission(tmp_path):
    assert look(tmp_path) == {}


def test_counters_that_everybody_may_read_are_usable(tmp_path):
    rapl(tmp_path / "sys")
    entry = look(tmp_path)["rapl"]
    assert entry.usable and entry.fix is None and entry.path.endswith("intel-rapl:0/energy_uj")


@pytest.mark.parametrize("zone", ["intel-rapl:0/energy", "intel-rapl:0:1"])
def test_counters_of_root_alone_are_told_with_the_rule_that_opens_them(tmp_path, zone):
    rapl(tmp_path / "sys")
    entry = look(tmp_path, refused=denying(zone))["rapl"]
    assert not entry.usable and entry.why == "Permission denied" and entry.fix == RAPL_FIX
    assert zone.partition("/")[0] in entry.path


@pytest.mark.parametrize("zone", ["intel-rapl:0:0", "intel-rapl:1"])
def test_counters_that_are_not_counted_do_not_matter(tmp_path, zone):
    rapl(tmp_path / "sys")
    assert look(tmp_path, refused=denying(zone))["rapl"].usable


def test_in_a_container_the_fix_is_for_the_host(tmp_path):
    rapl(tmp_path / "sys")
    fix = look(tmp_path, refused=denying("energy_uj"), container=DOCKER)["rapl"].fix or ""
    assert fix.startswith("on the host: ") and RAPL_FIX in fix and fix.endswith(MOUNT)


@pytest.mark.parametrize("kind", ["docker", "podman", "lxc", "kubernetes"])
def test_counters_that_a_container_hides_are_told(tmp_path, kind):
    sysfs = tmp_path / "sys"
    rapl(sysfs)
    shutil.rmtree(sysfs / "devices/virtual/powercap/intel-rapl")
    entry = look(tmp_path, container=Container(kind, ""))["rapl"]
    assert not entry.usable and "lead nowhere" in entry.why and entry.fix
    assert (MOUNT in entry.fix) == (kind in ("docker", "podman")) and "/host/sys" in entry.fix


def test_hidden_counters_are_told_as_a_permission_and_not_as_a_hint(tmp_path):
    rapl(tmp_path / "sys")
    shutil.rmtree(tmp_path / "sys/devices/virtual/powercap/intel-rapl")
    assert hints(DOCKER, tmp_path, tmp_path / "sys", wanted=True) == []


def test_the_rule_that_is_shipped_is_the_rule_that_is_told():
    lines = (DEPLOY / "60-edge-sel-rapl.rules").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [RAPL_RULE]
    assert f"'{RAPL_RULE}'" in RAPL_FIX and "'" not in RAPL_RULE
    assert 'ACTION=="add"' not in RAPL_RULE, "udevadm trigger sends change"
    for command in ("udevadm control --reload", "udevadm trigger --subsystem-match=powercap"):
        assert command in RAPL_FIX and any(line.startswith("#   sudo ") and command in line for line in lines)


JETSON = {
    "JetPack 4": "bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input",
    "JetPack 6": "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input",
    "Thor": "class/hwmon/hwmon2/power1_input",
}


@pytest.mark.parametrize("file", JETSON.values(), ids=JETSON)
def test_rails_of_root_alone_are_told_with_their_chmod(tmp_path, file):
    path = write(tmp_path / "sys" / file)
    write(path.parent / "name", "ina238")
    assert look(tmp_path)["jetson"].usable
    entry = look(tmp_path, refused=denying("input"))["jetson"]
    assert entry.path == str(path) and entry.fix == f"sudo chmod a+r {path.parent}/*_input, again after each boot"


def test_the_power_of_another_chip_is_no_rail(tmp_path):
    write(write(tmp_path / "sys/class/hwmon/hwmon0/power1_input").parent / "name", "ucsi_source_psy")
    assert look(tmp_path) == {}


def test_a_battery_of_root_alone_is_told_with_its_chmod(tmp_path):
    path = write(tmp_path / "sys/class/power_supply/BAT0/power_now")
    write(path.parent / "type", "Battery")
    write(write(tmp_path / "sys/class/power_supply/AC/voltage_now").parent / "type", "Mains")
    entry = look(tmp_path, refused=denying("_now"))["battery"]
    assert entry.path == str(path) and entry.fix == f"sudo chmod a+r {path.parent}/*_now, again after each boot"
    assert look(tmp_path, refused=denying("AC"))["battery"].usable


@pytest.mark.parametrize("node", ["nvidia0", "nvidiactl"])
@pytest.mark.parametrize(
    ("group", "fix"), [("video", "sudo usermod -aG video $USER"), ("root", "chmod"), (None, "chmod")]
)
def test_gpu_nodes_are_told_with_the_group_to_join(tmp_path, monkeypatch, node, group, fix):
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        write(tmp_path / "dev" / name)
    monkeypatch.setattr(access, "_group", lambda path: group)
    assert look(tmp_path, refused=denying("nvidia-uvm"))["nvml"].usable
    entry = look(tmp_path, refused=denying(node))["nvml"]
    assert not entry.usable and entry.path.endswith(node) and entry.fix and fix in entry.fix


def test_the_group_of_a_file_is_told_by_name(tmp_path):
    path = write(tmp_path / "file")
    assert access._group(path) == grp.getgrgid(path.stat().st_gid).gr_name
    assert access._group(tmp_path / "nothing") is None


def test_a_refusal_is_what_the_system_says(tmp_path, monkeypatch):
    assert refusal(write(tmp_path / "file")) is None
    assert refusal(tmp_path / "nothing") == "No such file or directory"
    assert refusal(Path("/dev/null")) is None
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    assert refusal(Path("/dev/null")) == "Permission denied", "a GPU must be written to"


def test_a_file_of_another_user_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = write(Path(folder) / "energy_uj")
        path.chmod(0o000)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            assert refusal(path) == "Permission denied"
        finally:
            if root:
                os.seteuid(0)


def test_by_default_it_looks_at_this_machine():
    assert permissions() == permissions(Path("/"), Path("/sys"))
