"""``power.csv``: joules, degrees and phase of a run over time, for reports.

At most 1 000 rows, however long the run is: then every second one is dropped, so that earlier stretches are coarser
than later ones. What is lost with a power cut is lost: joules are booked in the journal.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from edge_sel.edge.energy import Spent
from edge_sel.files import open_no_link, read_regular, write_durably

POWER = "power.csv"
COLUMNS = ("seconds", "total_j", "temp_c", "phase")
MOST_ROWS = 1000
LARGEST = 1 << 20
"""Bytes of a file that is read; ours are smaller."""


class PowerRow(NamedTuple):
    """What a run had spent at a moment.

    Attributes:
        seconds: that it had worked, over all parts of a run that was resumed.
        total_j: gross; None where not known.
        temp_c: of the hottest sensor; None where there is none.
        phase: what it had mostly done since the row before.
    """

    seconds: float
    total_j: float | None
    temp_c: float | None
    phase: str


class PowerLog:
    """Appends rows; a disk that takes no more ends it, and nothing else.

    Args:
        path: of the file.
        temperature: degrees Celsius now, None if not known.
    """

    def __init__(self, path: Path, temperature: Callable[[], float | None]) -> None:
        self._path, self._temperature = path, temperature
        self._rows: list[PowerRow] | None = None
        self._before = Spent()
        self._failed = False

    def add(self, spent: Spent) -> None:
        """A row for what the run has spent so far."""
        if self._failed or (self._rows and spent.seconds <= self._rows[-1].seconds):
            return
        try:
            self._add(PowerRow(round(spent.seconds, 3), spent.total_j, self._temperature(), self._phase(spent)))
        except Exception:  # as a sensor's, its failure is no failure of the run
            self._failed = True
        self._before = spent

    def _add(self, row: PowerRow) -> None:
        if self._rows is None:
            self._rows = [old for old in read_power(self._path) if old.seconds < row.seconds]
            self._rows.append(row)
            self._write_all(self._rows)
            return
        self._rows.append(row)
        if len(self._rows) > MOST_ROWS:
            self._rows = [*self._rows[:-1:2], row]
            self._write_all(self._rows)
            return
        with open_no_link(self._path, "ab") as file:
            file.write(_line(row))

    def _write_all(self, rows: list[PowerRow]) -> None:
        write_durably(self._path, (",".join(COLUMNS) + "\n").encode() + b"".join(map(_line, rows)))

    def _phase(self, spent: Spent) -> str:
        def more_s(name: str) -> float:
            return (spent.phases[name]["seconds"] or 0.0) - (self._before.phases.get(name, {}).get("seconds") or 0.0)

        return max(spent.phases, key=more_s, default="")


def read_power(path: Path) -> list[PowerRow]:
    """The rows of a file that are whole, by time; none where it is missing or something else."""
    try:
        text = read_regular(path, LARGEST).decode("utf-8", "replace")
    except OSError:
        return []
    rows: list[PowerRow] = []
    for cells in csv.DictReader(io.StringIO(text)):
        with suppress(KeyError, TypeError, ValueError):
            seconds, joules, degrees = (float(cells[key]) if cells[key] else None for key in COLUMNS[:3])
            if seconds is not None and cells["phase"] is not None and (not rows or seconds > rows[-1].seconds):
                rows.append(PowerRow(seconds, joules, degrees, cells["phase"]))
    return rows


def _line(row: PowerRow) -> bytes:
    joules, degrees = ("" if value is None else f"{value:.6g}" for value in (row.total_j, row.temp_c))
    return f"{row.seconds},{joules},{degrees},{row.phase}\n".encode()
