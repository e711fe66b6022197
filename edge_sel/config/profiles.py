"""What is known about the device: ``profiles/*.toml``, and which of them fits this machine."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_sel.config.schema import key, nearest, read_toml, schema_of, validate
from edge_sel.errors import UsageError
from edge_sel.sysfs import device_tree, has_nvidia_card, sysfs_root, sysfs_text

MAX_THREADS = max(256, 4 * (os.cpu_count() or 1))
"""More only wait for one another, and each takes memory."""
MAX_BATCH = 65536
METERS = ("jetson", "rapl", "nvml", "battery", "psutil")

# The first that is found in the device tree's ``compatible``, else in its ``model``: a carrier board may name another
# module than it carries. Part numbers are of modules or whole kits, not of carriers.
_BOARDS = (
    (r"\bthor\b|p3834|tegra264", "jetson-thor"),
    (r"orin nano|p3767-000[345]", "jetson-orin-nano"),
    (r"orin nx|p3767", "jetson-orin-nx"),
    (r"agx orin|p3701", "jetson-agx-orin"),
    (r"xavier nx|p3668", "jetson-xavier-nx"),
    (r"agx xavier|jetson-agx\b|p2888|p2972", "jetson-agx-xavier"),
    (r"jetson[ -]nano|p3448|p3450", "jetson-nano"),
    (r"jetson[ -]tx2|\bquill\b|p3310|p3489|p3636|p2771|tegra186", "jetson-tx2"),
    (r"raspberry pi (compute module )?5|bcm2712", "raspberry-pi-5"),
    (r"raspberry pi (compute module )?4|bcm2711", "raspberry-pi-4"),
    (r"raspberry ?pi[ ,](model-)?zero[ -]2", "raspberry-pi-zero-2"),
    (r"raspberry pi (compute module )?3|bcm2837", "raspberry-pi-3"),
    (r"rk3588", "rk3588-board"),
    (r"linux,dummy-virt", "cloud-vm"),
)
_PORTABLE = {"8", "9", "10", "14", "30", "31", "32"}  # SMBIOS: portable, laptop, notebook, sub-notebook, tablets
_VIRTUAL = r"kvm|qemu|\bxen\b|vmware|virtual|bochs|amazon ec2|google compute|alibaba|openstack|droplet|vserver"


@dataclass(frozen=True)
class Profile:
    """A kind of device: what it draws, how warm it may get, what suits it."""

    name: str
    idle_w: float = key("watts when nothing runs", kind=float, low=0, table="power")
    max_w: float = key("watts when every core is busy", kind=float, above=0, table="power")
    meters: tuple[str, ...] = key("meters to try, in order", METERS, choices=METERS, table="power")
    max_c: float | None = key("degrees it should not exceed", None, float, above=0, high=150, table="thermal")
    threads: int | None = key("threads to use, 0 for all", None, int, low=0, high=MAX_THREADS, table="runtime")
    batch_size: int | None = key("images in a batch", None, int, low=1, high=MAX_BATCH, table="runtime")


def list_profiles() -> list[str]:
    """The names of the profiles that come with edge-sel."""
    return sorted(path.stem for path in _profiles_folder().glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by its name, or any other by the path of its TOML file."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(path) not in list_profiles():
            near = nearest(str(path), list_profiles())
            raise UsageError(f"no profile {str(name_or_path)!r}: did you mean {near}?", fix="or give a .toml file")
        path = _profiles_folder() / f"{path}.toml"
    at = f"file:{path}"
    given = dict(read_toml(path))
    values, _, mistakes = validate([(name, value, at) for name, value in given.items()], schema_of(Profile))
    mistakes += [f"{name} is missing ({at})" for name in ("power.idle_w", "power.max_w") if name not in given]
    if values.get("power.max_w", math.inf) <= values.get("power.idle_w", -math.inf):
        mistakes.append(f"power.max_w must be above power.idle_w ({at})")
    if mistakes:
        raise UsageError("; ".join(mistakes))
    return Profile(path.stem, **{name.partition(".")[2]: value for name, value in values.items()})


def detect_profile(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> str:
    """The name of the profile that fits this machine; ``root`` stands in for ``/`` in tests.

    A board is known by its device tree, a laptop by its battery or chassis. What remains is a virtual machine (also
    one that was given a graphics card), an unknown board (it has a device tree and no BIOS that tells of itself), a
    computer with an NVIDIA graphics card, or ``default``.
    """
    sysfs = sysfs_root(environ, root)
    board = _board(sysfs, root)
    dmi = sysfs / "class/dmi/id"
    if board:
        return board
    if any((sysfs / "class/power_supply").glob("BAT*")) or sysfs_text(dmi / "chassis_type") in _PORTABLE:
        return "laptop"
    maker = " ".join(sysfs_text(dmi / name) for name in ("product_name", "sys_vendor"))
    flag = re.search(r"^flags\b.*\bhypervisor\b", sysfs_text(root / "proc/cpuinfo"), re.MULTILINE)
    if flag or re.search(_VIRTUAL, maker, re.IGNORECASE):
        return "cloud-vm"
    if device_tree(sysfs, root, "compatible") and not dmi.exists():
        return "arm-board"
    known = any((root / "proc/driver/nvidia/gpus").glob("*"))
    return "desktop-gpu" if known or has_nvidia_card(sysfs) else "default"


def _board(sysfs: Path, root: Path) -> str | None:
    """The profile of a board that its device tree names."""
    for file in ("compatible", "model"):
        for name in device_tree(sysfs, root, file):
            for pattern, profile in _BOARDS:
                if re.search(pattern, name, re.IGNORECASE):
                    return profile
    return None


def _profiles_folder() -> Path:
    package = Path(__file__).parents[1]
    return package / "_profiles" if (package / "_profiles").is_dir() else package.parent / "profiles"
