"""Processors and memory that this process may use: those of the machine, its affinity, and its control groups.

Control groups are what a container or a service manager lets it have.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_sel.sysfs import sysfs_text


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
    quotas = []
    for folder in _group_folders(root, "cpu"):
        limits = sysfs_text(folder / "cpu.max").split()
        limits = limits or [sysfs_text(folder / f"cpu.cfs_{word}_us") for word in ("quota", "period")]
        quota, period = (int(word) if word.isdecimal() else 0 for word in [*limits, "", ""][:2])
        if quota and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that the process's groups may still take, file pages that can be dropped included; None if unlimited."""
    lefts = []
    for folder in _group_folders(root, "memory"):
        for most, used, droppable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, taken = sysfs_text(folder / most), sysfs_text(folder / used)
            if limit.isdecimal() and taken.isdecimal():
                lines = sysfs_text(folder / "memory.stat").splitlines()
                statistics = dict(line.split(maxsplit=1) for line in lines if " " in line)
                lefts.append(max(0, int(limit) - int(taken) + int(statistics.get(droppable, 0))))
                break
    return min(lefts, default=None)


def _group_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's group and of those above, of both versions; ``root`` stands in for ``/`` in tests.

    Some of them may be missing: of a container's path the upper parts may lie outside, and then only its top is there.
    """
    groups = root / "sys/fs/cgroup"  # the process's own, wherever the sensors are
    for line in sysfs_text(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number != "0" and controller not in names.split(","):
            continue
        tree = groups
        if number != "0":
            tree = next((groups / n for n in (names, controller) if (groups / n).is_dir()), groups)
        parts = [part for part in path.split("/") if part]
        yield from [tree.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)] if ".." not in parts else [tree]
