"""Files of a run that grow while it runs: ``events.jsonl``, ``history.csv`` and ``power.csv``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypedDict

from edge_sel.edge.energy import Spent
from edge_sel.edge.host import Listener
from edge_sel.edge.judge import Evaluation
from edge_sel.edge.outputs.run_file import Joules, Number, Seconds
from edge_sel.edge.progress import Progress
from edge_sel.files import (
    cannot_write,
    finite,
    open_no_link,
    read_regular,
    refuse_link,
    regular_size,
    write_durably,
    write_table,
)
from edge_sel.power.figure import EnergyFigure
from edge_sel.schema import Longest, checked
from edge_sel.sel.embarrassment import confidence

# --- events.jsonl


BLOCK = 1 << 20


class EventLog:
    """Appends one JSON object per event to a file, if there is one; a listener is told too."""

    def __init__(self, path: Path | None, clock: Callable[[], float], listener: Listener) -> None:
        self._path = path
        self._clock = clock
        self._start_s = clock()
        self._listener = listener
        self._whole = False

    def __call__(self, event: str, **details: Any) -> None:
        """Record ``event`` with its details and the seconds since the start of this part of the run."""
        entry = {"t_s": round(self._clock() - self._start_s, 3), "event": event, **details}
        if self._path is not None:
            self._append(self._path, (json.dumps(finite(entry)) + "\n").encode())
        self._listener(entry)

    def _append(self, path: Path, line: bytes) -> None:
        try:
            if not self._whole:
                self._cut_half_line(path)
            with open_no_link(path, "ab") as file:
                file.write(line)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _cut_half_line(self, path: Path) -> None:
        """A power cut can leave half a line, which must not swallow the next one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_link(path)
        if path.exists():
            end = regular_size(path)
            with path.open("r+b") as file:
                whole = _end_of_lines(file, end)
                if whole < end:
                    file.truncate(whole)
        self._whole = True


def _end_of_lines(file: BinaryIO, end: int) -> int:
    """Where the last line that was written whole ends; looked for from the end, as logs grow."""
    while end > 0:
        start = file.seek(max(0, end - BLOCK))
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


# --- history.csv


PUBLISHED = ("epoch", "stage", "train_acc", "train_loss", "test_full", "test_100", "flops_T", "time_s", "sparsity")
"""Columns of the SEL benchmark's CSV files; ``flops_T`` is nominal and cumulative, as theirs is."""

OURS = (
    "plan", "validation_acc", "validation_loss", "energy_j", "net_j", "energy_source", "meter", "power_w", "temp_c",
    "active_rate", "gradient_kept", "executed_flops_T",
)  # fmt: skip


def epoch_entry(
    progress: Progress,
    training: Mapping[str, Any],
    validation: Evaluation,
    spent: Spent,
    figure: EnergyFigure,
    classes: Sequence[str],
) -> dict[str, Any]:
    """What an epoch did, what it cost, where the validation set stands, and E, C and accuracy of each class.

    Args:
        progress: before the epoch is entered.
        training: figures of the stage.
        validation: figures of the validation set; their keys begin with ``validation``.
        spent: joules of the epoch, over all parts of the run.
        figure: of its latest part, for the meter and the temperature.
        classes: their names.
    """
    class_e, seconds = progress.memory.class_e, spent.seconds
    confident = confidence(class_e)
    entry = {
        "epoch": len(progress.history) + 1,
        "training_stage": progress.stages_done,
        **training,
        "validation_acc": validation.accuracy,
        "validation_loss": validation.loss,
        "validation_e": validation.mean_embarrassment,
        "best_acc": progress.best_validation["accuracy"],
        "best_loss": progress.best_validation["loss"],
        "best_e": progress.best_validation["embarrassment"],
        "energy_j": spent.total_j,
        "net_j": spent.net_j,
        "energy_source": spent.source,
        "meter": figure.meter,
        "power_w": spent.total_j / seconds if spent.total_j is not None and seconds > 0 else None,
        "uncertainty_j": spent.uncertainty_j,
        "phases": spent.phases,
        "temp_c": figure.temp_c,
        "time_s": seconds,
        "classes": {
            name: {"E": class_e[i], "C": confident[i], "acc": validation.class_accuracy[i]}
            for i, name in enumerate(classes)
        },
    }
    return dict(finite(entry))


def history_rows(history: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """One flat row per epoch: the published columns, ours, then E_, C_ and acc_ of each class."""
    rows = []
    nominal = 0.0
    for entry in history:
        nominal += entry["nominal_flops_t"]
        row: dict[str, Any] = {key: entry.get(key) for key in (*PUBLISHED, *OURS)}
        row |= {"flops_T": nominal, "executed_flops_T": entry["executed_flops_t"]}
        for name in classes:
            figures = entry["classes"].get(name, {})
            row |= {f"E_{name}": figures.get("E"), f"C_{name}": figures.get("C"), f"acc_{name}": figures.get("acc")}
        rows.append(row)
    return rows


def write_history(path: Path, history: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """``history.csv``; unknown values are empty cells, never zeros."""
    write_table(path, history_rows(history, classes))


# --- power.csv


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


class _PowerCells(TypedDict):
    seconds: Seconds
    total_j: Joules | None
    temp_c: Number | None
    phase: Annotated[str, Longest(40)]


class PowerLog:
    """Joules, degrees and phase of a run over time, for reports.

    The file has at most 1 000 rows. A row more, and every second row is dropped: earlier stretches become coarser than
    later ones. A power cut may lose rows: joules are booked in the journal. A full disk ends the log, not the run.

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
    try:
        for cells in csv.DictReader(io.StringIO(text)):
            with suppress(KeyError, TypeError, ValueError):
                figures = {key: float(cells[key]) if cells[key] else None for key in COLUMNS[:3]}
                row = PowerRow(**checked(_PowerCells, {**figures, "phase": cells["phase"]}))
                if not rows or row.seconds > rows[-1].seconds:
                    rows.append(row)
    except csv.Error:  # such as a cell of more than 131 kB
        pass
    return rows[: 2 * MOST_ROWS]


def _line(row: PowerRow) -> bytes:
    joules, degrees = ("" if value is None else f"{value:.6g}" for value in (row.total_j, row.temp_c))
    return f"{row.seconds},{joules},{degrees},{row.phase}\n".encode()
