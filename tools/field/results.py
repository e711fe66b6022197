"""Finished runs, one JSON object a line, so that an interrupted benchmark goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from field.systems import options

Row: TypeAlias = dict[str, Any]


class Key(NamedTuple):
    """What makes a run the same run."""

    part: str
    shift: str
    seed: int
    system: str
    digest: str


def append(path: Path, row: Row) -> None:
    """Add a line, after ending one that a power cut left half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def load(path: Path) -> dict[Key, Row]:
    """The latest line of every run; what is not a line of ours is passed over."""
    rows: dict[Key, Row] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows[Key(*(row[name] for name in Key._fields))] = row
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def latest(rows: Iterable[Row], part: str, threads: int) -> list[Row]:
    """Of each system and cell the row that was written last, unless the system's options have changed since."""
    chosen = {
        (row["system"], row["shift"], row["seed"]): row
        for row in rows
        if row["part"] == part and row["threads"] == threads and row["options"] == options(row["system"])
    }
    return list(chosen.values())


def load_cost(out: Path) -> Row:
    """What a run took that finished but was not evaluated, or only on the other part; else nothing."""
    path = out / "measured.json"
    cost: Row = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return cost


def save_cost(out: Path, cost: Row) -> None:
    """Mark a run as finished."""
    half = out / "measured.part"
    half.write_text(json.dumps(cost), encoding="utf-8")
    half.replace(out / "measured.json")


def clear(out: Path) -> None:
    """Away with what an interrupted run left."""
    shutil.rmtree(out, ignore_errors=True)
