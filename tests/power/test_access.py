"""What keeps a process from sensors and processors, from trees that stand in for ``/`` and ``/sys``."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from edge_sel.power import access
from edge_sel.power.access import (
    MOUNT,
    RAPL_FIX,
    RAPL_RULE,
    Container,
    find_container,
    hints,
    is_wsl,
    permissions,
    refusal,
)
from edge_sel.power.processors import cpu_quota

DEPLOY = Path(access.__file__).parent.parent.parent / "deploy"
DOCKER = Container("docker", "/.dockerenv is there")


def put(path: Path, text: str = "1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def rapl(sysfs: Path) -> dict[str, Path]:
    """Two zones that are counted and two that are not, behind links as the kernel makes them."""
    found = {}
    for zone, name in {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "psys"}.items():
        folder = sysfs / f"devices/virtual/powercap/intel-rapl/intel-rapl:{zone}"
        found[name] = put(folder / "energy_uj")
        put(folder / "name", f"{name}\n")
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


def test_nothing_to_permit(tmp_path):
    assert look(tmp_path) == {}


def test_all_can_be_read(tmp_path):
    rapl(tmp_path / "sys")
    entry = look(tmp_path)["rapl"]
    assert entry.usable and entry.fix is None and entry.path.endswith("intel-rapl:0/energy_uj")


@pytest.mark.parametrize("zone", ["intel-rapl:0/energy", "intel-rapl:0:1"])
def test_counters_of_root_alone(tmp_path, zone):
    rapl(tmp_path / "sys")
    entry = look(tmp_path, refused=denying(zone))["rapl"]
    assert not entry.usable and entry.why == "Permission denied" and entry.fix == RAPL_FIX
    assert zone.partition("/")[0] in entry.path


@pytest.mark.parametrize("zone", ["intel-rapl:0:0", "intel-rapl:1"])
def test_counters_that_are_not_counted_do_not_matter(tmp_path, zone):
    rapl(tmp_path / "sys")
    assert look(tmp_path, refused=denying(zone))["rapl"].usable


def test_in_a_container_the_host_permits(tmp_path):
    rapl(tmp_path / "sys")
    fix = look(tmp_path, refused=denying("energy_uj"), container=DOCKER)["rapl"].fix or ""
    assert fix.startswith("on the host: ") and RAPL_FIX in fix and fix.endswith(MOUNT)


@pytest.mark.parametrize("kind", ["docker", "podman", "lxc", "kubernetes"])
def test_docker_hides_the_counters(tmp_path, kind):
    sysfs = tmp_path / "sys"
    rapl(sysfs)
    shutil.rmtree(sysfs / "devices/virtual/powercap/intel-rapl")
    entry = look(tmp_path, container=Container(kind, ""))["rapl"]
    assert not entry.usable and "hidden" in entry.why and entry.fix
    assert (MOUNT in entry.fix) == (kind in ("docker", "podman")) and "/host/sys" in entry.fix


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
def test_rails(tmp_path, file):
    path = put(tmp_path / "sys" / file)
    put(path.parent / "name", "ina238\n")
    assert look(tmp_path)["jetson"].usable
    entry = look(tmp_path, refused=denying("input"))["jetson"]
    assert entry.path == str(path) and entry.fix == f"sudo chmod a+r {path.parent}/*_input, again after each boot"


def test_the_power_of_another_chip_is_no_rail(tmp_path):
    put(put(tmp_path / "sys/class/hwmon/hwmon0/power1_input").parent / "name", "ucsi_source_psy\n")
    assert look(tmp_path) == {}


def test_battery(tmp_path):
    path = put(tmp_path / "sys/class/power_supply/BAT0/power_now")
    put(path.parent / "type", "Battery\n")
    put(put(tmp_path / "sys/class/power_supply/AC/voltage_now").parent / "type", "Mains\n")
    entry = look(tmp_path, refused=denying("_now"))["battery"]
    assert entry.path == str(path) and entry.fix == f"sudo chmod a+r {path.parent}/*_now, again after each boot"
    assert look(tmp_path, refused=denying("AC"))["battery"].usable


@pytest.mark.parametrize("node", ["nvidia0", "nvidiactl"])
@pytest.mark.parametrize(
    ("group", "fix"), [("video", "sudo usermod -aG video $USER"), ("root", "chmod"), (None, "chmod")]
)
def test_gpu_nodes(tmp_path, monkeypatch, node, group, fix):
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        put(tmp_path / "dev" / name)
    monkeypatch.setattr(access, "_group", lambda path: group)
    assert look(tmp_path, refused=denying("nvidia-uvm"))["nvml"].usable
    entry = look(tmp_path, refused=denying(node))["nvml"]
    assert not entry.usable and entry.path.endswith(node) and entry.fix and fix in entry.fix


def test_group(tmp_path):
    assert access._group(put(tmp_path / "file")) is not None
    assert access._group(tmp_path / "nothing") is None


def test_refusal(tmp_path, monkeypatch):
    assert refusal(put(tmp_path / "file")) is None
    assert "No such file" in (refusal(tmp_path / "nothing") or "")
    assert refusal(Path("/dev/null")) is None
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    assert refusal(Path("/dev/null")) == "Permission denied", "a GPU must be written to"


def test_refusal_of_a_file_of_another():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = put(Path(folder) / "energy_uj")
        path.chmod(0o000)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            assert refusal(path) == "Permission denied"
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize(
    ("file", "text", "kind"),
    [
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "", "podman"),
        ("proc/1/cgroup", "0::/kubepods/burstable/pod1/cri-containerd-2.scope", "kubernetes"),
        ("proc/1/cgroup", "12:cpu,cpuacct:/kubepods/pod1/docker-2.scope", "kubernetes"),
        ("proc/1/cgroup", "12:cpu,cpuacct:/docker/3f2a\n1:name=systemd:/docker/3f2a", "docker"),
        ("proc/1/cgroup", "0::/lxc.payload.box/init.scope", "lxc"),
        ("proc/1/cgroup", "0::/machine.slice/libpod-1.scope", "podman"),
    ],
)
def test_containers(tmp_path, file, text, kind):
    put(tmp_path / file, text)
    found = find_container(tmp_path, {})
    assert found is not None and found.kind == kind and file.split("/")[-1] in found.sign


@pytest.mark.parametrize(
    ("environ", "kind"),
    [({"container": "lxc"}, "lxc"), ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "container": "oci"}, "kubernetes")],
)
def test_containers_by_their_environment(tmp_path, environ, kind):
    found = find_container(tmp_path, environ)
    assert found is not None and found.kind == kind


@pytest.mark.parametrize("groups", ["0::/", "0::/init.scope", None])
def test_no_container(tmp_path, groups):
    if groups is not None:
        put(tmp_path / "proc/1/cgroup", groups)
    assert find_container(tmp_path, {"container": ""}) is None


@pytest.mark.parametrize(
    ("release", "wsl"),
    [
        ("5.15.153.1-microsoft-standard-WSL2", True),
        ("4.4.0-19041-Microsoft", True),
        ("6.1.0-18-amd64", False),
        (None, False),
    ],
)
def test_wsl(tmp_path, release, wsl):
    if release is not None:
        put(tmp_path / "proc/sys/kernel/osrelease", f"{release}\n")
    assert is_wsl(tmp_path) == wsl
    assert bool(hints(None, tmp_path, tmp_path / "sys", wanted=True)) == wsl


GROUPS = {
    "no control groups": ({}, None),
    "a container's own": ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
    "as it likes": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
    "a service's": (
        {
            "proc/self/cgroup": "0::/system.slice/a.service",
            "sys/fs/cgroup/system.slice/a.service/cpu.max": "200000 100000",
            "sys/fs/cgroup/system.slice/cpu.max": "max 100000",
        },
        2.0,
    ),
    "that of the slice above is tighter": (
        {
            "proc/self/cgroup": "0::/system.slice/a.service",
            "sys/fs/cgroup/system.slice/a.service/cpu.max": "200000 100000",
            "sys/fs/cgroup/system.slice/cpu.max": "50000 100000",
        },
        0.5,
    ),
    "of another": ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/b/cpu.max": "50000 100000"}, None),
    "version 1": (
        {
            "proc/self/cgroup": "3:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/cpu.max": "1 100000",
        },
        2.5,
    ),
    "version 1 under a short name": (
        {
            "proc/self/cgroup": "2:cpu,cpuacct:/\n0::/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        0.5,
    ),
    "version 1, as it likes": (
        {
            "proc/self/cgroup": "2:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        None,
    ),
    "cpuset is not cpu": ({"proc/self/cgroup": "2:cpuset:/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000"}, None),
    "out of sight": (
        {"proc/self/cgroup": "0::/../../x", "sys/fs/cgroup/cpu.max": "300000 100000", "sys/x/cpu.max": "1 100000"},
        3.0,
    ),
    "broken": ({"sys/fs/cgroup/cpu.max": "many"}, None),
    "broken too": ({"sys/fs/cgroup/cpu.max": "100000 0"}, None),
}


@pytest.mark.parametrize(("files", "quota"), GROUPS.values(), ids=GROUPS)
def test_quota(tmp_path, files, quota):
    for name, text in files.items():
        put(tmp_path / name, text)
    assert cpu_quota(tmp_path) == quota


def hint(tmp_path: Path, container: Container | None = DOCKER, *, wanted: bool = False) -> str:
    return "; ".join(hints(container, tmp_path, tmp_path / "sys", wanted=wanted))


def test_the_hosts_sensors(tmp_path):
    assert MOUNT in hint(tmp_path, wanted=True)
    assert hint(tmp_path) == hint(tmp_path, None, wanted=True) == ""
    told = hint(tmp_path, Container("lxc", ""), wanted=True)
    assert MOUNT not in told and "/host/sys" in told


def test_hidden_counters_are_told_as_a_permission_only(tmp_path):
    rapl(tmp_path / "sys")
    shutil.rmtree(tmp_path / "sys/devices/virtual/powercap/intel-rapl")
    assert hint(tmp_path, wanted=True) == ""


@pytest.mark.parametrize(("vendor", "kind", "gpu"), [("0x10de", "0x030200", True), ("0x10de", "0x040300", False), ("0x1002", "0x030000", False)])  # fmt: skip
def test_a_gpu_that_the_container_lacks(tmp_path, vendor, kind, gpu):
    put(tmp_path / "sys/bus/pci/devices/0000:01:00.0/vendor", f"{vendor}\n")
    put(tmp_path / "sys/bus/pci/devices/0000:01:00.0/class", f"{kind}\n")
    assert ("--gpus all" in hint(tmp_path)) == gpu
    assert hint(tmp_path, None) == ""
    put(tmp_path / "dev/nvidiactl")
    assert hint(tmp_path) == ""


def test_a_jetson(tmp_path):
    put(tmp_path / "sys" / JETSON["JetPack 6"])
    assert "--runtime nvidia" in hint(tmp_path)
    put(tmp_path / "dev/nvmap")
    assert hint(tmp_path) == ""


def test_a_board_without_its_name(tmp_path):
    tree = tmp_path / "proc/device-tree"
    tree.parent.mkdir(parents=True)
    tree.symlink_to(tmp_path / "hidden")
    assert "--profile" in hint(tmp_path)
    put(tmp_path / "sys/firmware/devicetree/base/model", "Raspberry Pi 5")
    assert hint(tmp_path) == "", "the host's /sys tells it"
    shutil.rmtree(tmp_path / "sys")
    put(tmp_path / "hidden/model")
    assert hint(tmp_path) == ""


def test_of_this_machine_nothing_raises():
    assert cpu_quota() is None or cpu_quota() > 0
    find_container(), is_wsl(), hints(find_container(), wanted=True), permissions()
