"""What the kernel tells of this machine: files of sysfs, procfs and the device tree, each read in one go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_NVIDIA, _DISPLAY = "0x10de", "0x03"


def sysfs_root(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Path:
    """Where sysfs is: ``/sys``, or ``EDGE_SEL_SYSFS_ROOT`` in tests and containers; ``root`` stands in for ``/``."""
    return Path(environ.get("EDGE_SEL_SYSFS_ROOT") or root / "sys")


def read_sysfs(path: Path) -> str:
    """What a file says, stripped; OSError if it cannot tell.

    Not ``read_text``: where the driver answers "try again" (EAGAIN) that fails with a TypeError.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        return os.read(descriptor, 1 << 16).decode("utf-8", "replace").strip("\0 \t\r\n")
    finally:
        os.close(descriptor)


def sysfs_text(path: Path) -> str:
    """The same; empty if the file cannot tell."""
    try:
        return read_sysfs(path)
    except OSError:
        return ""


def whole_number(text: str, base: int = 10) -> int:
    """The number; ValueError that says what is there instead."""
    try:
        return int(text, base)
    except ValueError:
        raise ValueError(f"reports {text[:20]!r}") from None


def in_order(numbered: Iterable[Path]) -> list[Path]:
    """``zone2`` before ``zone10``."""
    return sorted(numbered, key=lambda path: (len(path.name), path.name))


def device_tree(sysfs: Path, root: Path, file: str) -> list[str]:
    """What a file of the device tree says; containers may hide one of the two places where it is."""
    names = (sysfs_text(folder / file) for folder in (sysfs / "firmware/devicetree/base", root / "proc/device-tree"))
    return [text for text in names if text]


def board_model(sysfs: Path, root: Path = Path("/")) -> str | None:
    """What the device tree calls this board."""
    return next(iter(device_tree(sysfs, root, "model")), None)


def processor_model(root: Path = Path("/")) -> str | None:
    """What the kernel calls the first processor; ARM kernels do not tell."""
    found = re.search(r"^model name\s*:\s*(.*)$", sysfs_text(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else None


def has_nvidia_card(sysfs: Path) -> bool:
    """Whether there is a display or 3D controller of NVIDIA."""
    cards = (sysfs / "bus/pci/devices").glob("*")
    return any(sysfs_text(c / "vendor") == _NVIDIA and sysfs_text(c / "class").startswith(_DISPLAY) for c in cards)
