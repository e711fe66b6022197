"""The control groups that this process is in: what a container or a service manager lets it have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_sel.power.zones import sysfs_text


def group_folders(root: Path, controller: str) -> Iterator[Path]:
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


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that the process's groups may still take, file pages that can be dropped included; None if unlimited."""
    return min((left for folder in group_folders(root, "memory") if (left := _left(folder)) is not None), default=None)


def _left(folder: Path) -> int | None:
    for most, used, droppable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, taken = sysfs_text(folder / most), sysfs_text(folder / used)
        if limit.isdecimal() and taken.isdecimal():
            told = dict(
                line.split(maxsplit=1) for line in sysfs_text(folder / "memory.stat").splitlines() if " " in line
            )
            return max(0, int(limit) - int(taken) + int(told.get(droppable, 0)))
    return None
