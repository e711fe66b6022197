"""How many processors there are, and how many of them this process may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_sel.power.control_groups import group_folders
from edge_sel.power.zones import sysfs_text


@dataclass(frozen=True)
class Processors:
    """Logical processors."""

    count: int
    """Of the machine."""
    allowed: int
    """Those that this process may run on."""
    quota: float | None
    """How many processors' time it may take; None without a limit."""


def find_processors(root: Path = Path("/")) -> Processors:
    """Those of this machine; ``root`` stands in for ``/`` in tests."""
    count = logical_processors()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return Processors(count, allowed, cpu_quota(root))


def logical_processors() -> int:
    """All of the machine: what processor seconds are a share of, whoever uses them."""
    return os.cpu_count() or 1


def usable_cores() -> int:
    """Physical cores, as far as this process may use them: more threads than that only wait for one another."""
    import psutil

    found = find_processors()
    physical = psutil.cpu_count(logical=False) or found.count
    return max(1, min(physical, found.allowed, int(found.quota or physical)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many processors' time this process may take, by its control group and those above; None if as it likes."""
    quotas = [quota for folder in group_folders(root, "cpu") if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _quota(folder: Path) -> float | None:
    told = sysfs_text(folder / "cpu.max").split()
    told = told or [sysfs_text(folder / f"cpu.cfs_{word}_us") for word in ("quota", "period")]
    quota, period = (int(word) if word.isdecimal() else 0 for word in [*told, "", ""][:2])
    return quota / period if quota and period else None
