"""Containers and what they lack: signs of one, processor quotas, hints; from trees that stand in for ``/``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from power_fakes import write

from edge_sel.power.access import MOUNT, Container, find_container, hints, is_wsl
from edge_sel.power.resources import cpu_quota, memory_left

DOCKER = Container("docker", "/.dockerenv is there")
INA3221 = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input"


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
def test_a_container_is_known_by_its_files(tmp_path, file, text, kind):
    write(tmp_path / file, text)
    found = find_container(tmp_path, {})
    assert found is not None and found.kind == kind and file.split("/")[-1] in found.sign


@pytest.mark.parametrize(
    ("environ", "kind"),
    [({"container": "lxc"}, "lxc"), ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "container": "oci"}, "kubernetes")],
)
def test_a_container_is_known_by_its_environment(tmp_path, environ, kind):
    found = find_container(tmp_path, environ)
    assert found is not None and found.kind == kind


@pytest.mark.parametrize("groups", ["0::/", "0::/init.scope", None])
def test_a_bare_machine_is_no_container(tmp_path, groups):
    if groups is not None:
        write(tmp_path / "proc/1/cgroup", groups)
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
def test_wsl_is_known_by_its_kernel_and_hinted_at(tmp_path, release, wsl):
    if release is not None:
        write(tmp_path / "proc/sys/kernel/osrelease", f"{release}")
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
def test_the_tightest_quota_of_processors_counts(tmp_path, files, quota):
    for name, text in files.items():
        write(tmp_path / name, text)
    assert cpu_quota(tmp_path) == quota


V1 = "sys/fs/cgroup/memory/memory"
MEMORY = {
    "no limit": ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "max"}, None),
    "version 2": ({"sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "300"}, 700),
    "file pages count as free": (
        {
            "sys/fs/cgroup/memory.max": "1000",
            "sys/fs/cgroup/memory.current": "900",
            "sys/fs/cgroup/memory.stat": "anon 400\ninactive_file 500\n",
        },
        600,
    ),
    "the group above is tighter": (
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/memory.max": "500",
            "sys/fs/cgroup/a/memory.current": "400",
            "sys/fs/cgroup/a/b/memory.max": "900",
            "sys/fs/cgroup/a/b/memory.current": "100",
        },
        100,
    ),
    "more is taken than allowed": ({"sys/fs/cgroup/memory.max": "10", "sys/fs/cgroup/memory.current": "30"}, 0),
    "version 1": (
        {"proc/self/cgroup": "3:memory:/\n", f"{V1}.limit_in_bytes": "1000", f"{V1}.usage_in_bytes": "400"},
        600,
    ),
    "broken": ({"sys/fs/cgroup/memory.max": "many", "sys/fs/cgroup/memory.current": "1"}, None),
}


@pytest.mark.parametrize(("files", "left"), MEMORY.values(), ids=MEMORY)
def test_what_control_groups_leave_of_the_memory(tmp_path, files, left):
    for name, text in files.items():
        write(tmp_path / name, text)
    assert memory_left(tmp_path) == left


def hint(tmp_path: Path, container: Container | None = DOCKER, *, wanted: bool = False) -> str:
    return "; ".join(hints(container, tmp_path, tmp_path / "sys", wanted=wanted))


def test_a_container_is_told_how_to_see_the_hosts_sensors(tmp_path):
    assert MOUNT in hint(tmp_path, wanted=True)
    assert hint(tmp_path) == hint(tmp_path, None, wanted=True) == ""
    text = hint(tmp_path, Container("lxc", ""), wanted=True)
    assert MOUNT not in text and "/host/sys" in text


@pytest.mark.parametrize(("vendor", "kind", "gpu"), [("0x10de", "0x030200", True), ("0x10de", "0x040300", False), ("0x1002", "0x030000", False)])  # fmt: skip
def test_a_gpu_that_the_container_lacks_is_hinted_at(tmp_path, vendor, kind, gpu):
    write(tmp_path / "sys/bus/pci/devices/0000:01:00.0/vendor", f"{vendor}")
    write(tmp_path / "sys/bus/pci/devices/0000:01:00.0/class", f"{kind}")
    assert ("--gpus all" in hint(tmp_path)) == gpu
    assert hint(tmp_path, None) == ""
    write(tmp_path / "dev/nvidiactl")
    assert hint(tmp_path) == ""


def test_a_jetson_container_without_its_runtime_is_hinted_at(tmp_path):
    write(tmp_path / "sys" / INA3221)
    assert "--runtime nvidia" in hint(tmp_path)
    write(tmp_path / "dev/nvmap")
    assert hint(tmp_path) == ""


def test_a_board_whose_name_is_hidden_is_hinted_at(tmp_path):
    tree = tmp_path / "proc/device-tree"
    tree.parent.mkdir(parents=True)
    tree.symlink_to(tmp_path / "hidden")
    assert "--profile" in hint(tmp_path)
    write(tmp_path / "sys/firmware/devicetree/base/model", "Raspberry Pi 5")
    assert hint(tmp_path) == "", "the host's /sys tells it"
    shutil.rmtree(tmp_path / "sys")
    write(tmp_path / "hidden/model")
    assert hint(tmp_path) == ""


def test_by_default_they_look_at_this_machine():
    assert find_container() == find_container(Path("/"), os.environ)
    assert (is_wsl(), cpu_quota()) == (is_wsl(Path("/")), cpu_quota(Path("/")))
    assert hints(DOCKER, wanted=True) == hints(DOCKER, Path("/"), Path("/sys"), wanted=True)
