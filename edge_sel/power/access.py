"""What keeps this process from sensors: permissions, containers. Nothing here changes anything.

Docker and containerd hide RAPL from containers since the end of 2023 (GHSA-jq35-85cj-fj4p): an empty folder is mounted
over ``/sys/devices/virtual/powercap``, and where AppArmor is on its profile forbids that path too. Mounting
``/sys/class/powercap`` does not help, as it holds links into that folder. The host's ``/sys`` under another path does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from edge_sel.sysfs import has_nvidia_card, sysfs_text

RAPL_RULE = 'ACTION!="remove", SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", RUN+="/bin/chmod a+r /sys%p/energy_uj"'
"""Stands in deploy/60-edge-sel-rapl.rules too. ``udevadm trigger`` sends "change", so it must not ask for "add"."""

RAPL_FIX = (
    f"echo '{RAPL_RULE}' | sudo tee /etc/udev/rules.d/60-edge-sel-rapl.rules && sudo udevadm control --reload "
    "&& sudo udevadm trigger --subsystem-match=powercap"
)
MOUNT = "-v /sys:/host/sys:ro -e EDGE_SEL_SYSFS_ROOT=/host/sys"
_GROUPED = {"kubepods": "kubernetes", "docker": "docker", "libpod": "podman", "containerd": "containerd", "lxc": "lxc"}


class Access(NamedTuple):
    """Whether the files that a meter needs can be opened."""

    meter: str
    usable: bool
    path: str
    """The first that cannot be opened, else the first there is."""
    why: str
    fix: str | None = None


class Container(NamedTuple):
    """The kind of container this process is in, and what tells."""

    kind: str
    sign: str


def refusal(path: Path) -> str | None:
    """Why the file cannot be opened to read, a device to read and write; None if it can."""
    try:
        if path.is_char_device():  # opening one may switch on what it stands for
            return None if os.access(path, os.R_OK | os.W_OK) else "Permission denied"
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return error.strerror or str(error)
    return None


def permissions(
    root: Path = Path("/"),
    sysfs: Path = Path("/sys"),
    *,
    container: Container | None = None,
    refused: Callable[[Path], str | None] = refusal,
) -> list[Access]:
    """One entry for each meter whose files are here.

    Args:
        root: stands in for ``/``.
        sysfs: stands in for ``/sys``.
        container: as ``find_container`` says; in one, what is to be done is done outside.
        refused: why a file cannot be opened, or None.

    """
    found = []
    for meter, files in _files(root, sysfs).items():
        denied = [(path, why) for path in files if (why := refused(path)) is not None]
        if denied:
            path, why = denied[0]
            found.append(Access(meter, False, str(path), why, _fix(meter, path, container)))
        elif files:
            found.append(Access(meter, True, str(files[0]), "can be read"))
    if hidden_rapl(sysfs):
        why = "the links lead nowhere: containers are kept from it"
        found.append(Access("rapl", False, str(sysfs / "class/powercap"), why, _mount(container)))
    return found


def _files(root: Path, sysfs: Path) -> dict[str, list[Path]]:
    rails = [
        *sysfs.glob("bus/i2c/drivers/ina3221x/*/iio:device*/in_*_input"),
        *sysfs.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*/*[0-9]_input"),
        *(p for p in sysfs.glob("class/hwmon/hwmon*/power*_input") if sysfs_text(p.parent / "name") == "ina238"),
    ]
    zones = [(sysfs_text(p.parent / "name"), p) for p in sysfs.glob("class/powercap/intel-rapl:*/energy_uj")]
    battery = [p for p in sysfs.glob("class/power_supply/*/*_now") if sysfs_text(p.parent / "type") == "Battery"]
    return {
        "rapl": sorted(p for name, p in zones if name == "dram" or name.startswith("package")),
        "jetson": sorted(rails),
        "nvml": [*sorted((root / "dev").glob("nvidia[0-9]*")), *(root / "dev").glob("nvidiactl")],
        "battery": sorted(battery),
    }


def _fix(meter: str, path: Path, container: Container | None) -> str:
    if meter == "nvml":
        group = _group(path)
        if group in (None, "root"):
            return f"sudo chmod a+rw {path}; for good, see NVreg_DeviceFileMode of the NVIDIA driver"
        return f"sudo usermod -aG {group} $USER, then log in again"
    ending = path.name.rpartition("_")[2]
    fix = RAPL_FIX if meter == "rapl" else f"sudo chmod a+r {path.parent}/*_{ending}, again after each boot"
    return fix if container is None else f"on the host: {fix}; then {_mount(container)}"


def _mount(container: Container | None) -> str:
    """How a container gets to see the host's sensors."""
    if container is None or container.kind in ("docker", "podman", "containerd"):
        return f"start the container with {MOUNT}"
    return "mount the host's /sys into the container at /host/sys, read-only, and set EDGE_SEL_SYSFS_ROOT=/host/sys"


def _group(path: Path) -> str | None:
    with suppress(Exception):  # no such file, or no such group, as in containers
        return path.group()
    return None


def hidden_rapl(sysfs: Path) -> bool:
    """Whether the counters are there, but behind an empty folder: the links to them lead nowhere."""
    return any(not link.exists() for link in sysfs.glob("class/powercap/intel-rapl:*"))


def find_container(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Container | None:
    """The container this process is in, if there is one that can be told."""
    if "KUBERNETES_SERVICE_HOST" in environ:
        return Container("kubernetes", "KUBERNETES_SERVICE_HOST is set")
    for file, kind in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (root / file).exists():
            return Container(kind, f"/{file} is there")
    if kind := environ.get("container", ""):
        return Container(kind, f"the variable container is {kind}")
    groups = sysfs_text(root / "proc/1/cgroup")
    for word, kind in _GROUPED.items():
        if word in groups:
            return Container(kind, f"/proc/1/cgroup names {word}")
    return None


def is_wsl(root: Path = Path("/")) -> bool:
    """Whether this is Linux inside Windows."""
    return "microsoft" in sysfs_text(root / "proc/sys/kernel/osrelease").lower()


def hints(
    container: Container | None,
    root: Path = Path("/"),
    sysfs: Path = Path("/sys"),
    *,
    wanted: bool,
) -> list[str]:
    """What a container or WSL keeps away, and how to get it.

    Args:
        container: as ``find_container`` says.
        root: stands in for ``/``.
        sysfs: stands in for ``/sys``.
        wanted: whether power sensors are still wanted.

    """
    found = []
    if is_wsl(root):
        found.append("WSL passes on no power sensor but that of an NVIDIA GPU; the processor's joules are modelled")
    if container is None:
        return found
    if wanted and not hidden_rapl(sysfs):
        found.append(f"if the host has power sensors, {_mount(container)}")
    if has_nvidia_card(sysfs) and not (root / "dev/nvidiactl").exists():
        found.append("the host has an NVIDIA GPU: start the container with --gpus all (NVIDIA Container Toolkit)")
    if any(sysfs.glob("bus/i2c/drivers/ina3221*")) and not (root / "dev/nvmap").exists():
        found.append("on a Jetson, --runtime nvidia gives torch the GPU; the power rails need nothing")
    tree = root / "proc/device-tree"
    if tree.is_symlink() and not tree.exists() and not (sysfs / "firmware/devicetree/base/model").exists():
        found.append(f"containers hide which board this is: name it with --profile, or {_mount(container)}")
    return found
