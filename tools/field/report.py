"""Tables of finished runs: each system's means over field shifts and seeds, then one row for each shift."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median

from field.cells import CAMERA, HELD_OUT, TUNING
from field.results import Row
from field.streams import STREAMS
from field.systems import ALL, REFERENCE, ROBUST, SCHEDULES

WITHIN = 0.005  # of the best dense schedule: how good the cheapest may be called equal
COLUMNS = (
    "part", "shift", "seed", "system", "accuracy", "familiar", "cpu_s", "wall_s", "gross_j", "net_j", "source", "meter",
    "profile", "rss_mb", "threads", "options", "digest", "failed",
)  # fmt: skip
CHEAPEST = "dense-1"
"""Of the dense schedules, however good."""

Cells = dict[tuple[str, int], Row]


class Table:
    """The finished rows of some field shifts, by system and cell."""

    def __init__(self, rows: Iterable[Row], shifts: Sequence[str]) -> None:
        self.shifts = shifts
        self.cells: dict[str, Cells] = defaultdict(dict)
        self.failed: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["shift"] in shifts:
                if row.get("failed"):
                    self.failed[row["system"]].append(row)
                else:
                    self.cells[row["system"]][row["shift"], row["seed"]] = row
        names = {*self.cells, *self.failed}
        self.systems = [name for name in ALL if name in names] + sorted(names - {*ALL})

    def mean(self, system: str, column: str, among: Iterable[str] | None = None) -> float | None:
        """Mean over shifts of the mean over seeds, in the cells that all of ``among`` finished too."""
        by_shift = self.by_shift(system, column, among)
        return mean(by_shift.values()) if by_shift else None

    def by_shift(self, system: str, column: str, among: Iterable[str] | None = None) -> dict[str, float]:
        """Mean over seeds for each shift."""
        shared = set(self.cells[system]).intersection(*(self.cells[other] for other in among or ()))
        values = defaultdict(list)
        for cell in sorted(shared):
            values[cell[0]].append(self.cells[system][cell][column])
        return {shift: mean(values[shift]) for shift in self.shifts if shift in values}

    def ratio(self, column: str, above: str | None, below: str) -> float | None:
        """Median of one system's cost divided by that of another, over the cells that both finished.

        Medians, because a busy machine makes single runs dearer, never cheaper.
        """
        shared = self.cells[above].keys() & self.cells[below].keys() if above is not None else ()
        top, bottom = ([self.cells[name or ""][cell][column] for cell in shared] for name in (above, below))
        return median(top) / median(bottom) if top and median(bottom) else None

    def gain(self, system: str, reference: str | None) -> tuple[float | None, float | None]:
        """Accuracy above that of the reference: on average, and on the worst shift."""
        if reference is None:
            return None, None
        ours, theirs = (self.by_shift(a, "accuracy", [b]) for a, b in ((system, reference), (reference, system)))
        gains = [ours[shift] - theirs[shift] for shift in ours]
        return (mean(gains), min(gains)) if gains else (None, None)

    def honest(self, start: str = "") -> str | None:
        """The cheapest dense schedule within half a point of the best of them; None before all have finished.

        ``start``: ``ROBUST`` for those from the robust checkpoint.
        """
        schedules = [name + start for name in SCHEDULES]
        accuracy = {name: self.mean(name, "accuracy", schedules) for name in schedules}
        known = {name: value for name, value in accuracy.items() if value is not None}
        if len(known) < len(schedules):
            return None
        best = max(known.values())
        return next(name for name in schedules if known[name] >= best - WITHIN)


def show(rows: Sequence[Row], say: Callable[[str], None] = print) -> None:
    """Print everything: tuning families, held-out families, both together, and shift by shift."""
    there = {row["shift"] for row in rows}
    present = [shift for shift in CAMERA if shift in there] + sorted(there - {*CAMERA, *STREAMS})
    streams = [shift for shift in STREAMS if shift in there]
    tuning = Table(rows, TUNING)
    honest = [tuning.honest(), tuning.honest(ROBUST)]
    if rows:
        say(_facts(rows))
    unknown = "unknown before all dense schedules have finished"
    say(f"(b), the cheapest good dense schedule: {honest[0] or unknown}; (c), from robust: {honest[1] or unknown}")
    groups = {"all shifts": present, "tuning": [s for s in present if s not in HELD_OUT]}
    groups["held out"] = [s for s in present if s in HELD_OUT]
    for title, shifts in groups.items():
        if shifts and (title == "all shifts" or len(shifts) < len(present)):
            say(f"\n{title}: {', '.join(shifts)}")
            _summary(Table(rows, shifts), {REFERENCE: REFERENCE, "(b)": honest[0], "(c)": honest[1]}, say)
    for shift in streams:
        say(f"\n{shift}: accuracy on shifted images, and on the same as the server knows them")
        opponents = {name: name for name in (CHEAPEST, CHEAPEST + ROBUST)}
        _summary(Table(rows, [shift]), opponents, say, familiar=True)
    present += streams
    table = Table(rows, present)
    for column, title, scale in (("accuracy", "accuracy in %", 100), ("gross_j", "gross joules", 1)):
        say(f"\n{title}")
        grid = {name: table.by_shift(name, column) for name in table.systems}
        _print(["shift", *table.systems], [
            [shift, *(_number(grid[name].get(shift), scale) for name in table.systems)] for shift in present
        ], say)  # fmt: skip
    for name, failures in table.failed.items():
        say(f"\n{name} failed {len(failures)} times, for example in {failures[-1]['shift']}: {failures[-1]['failed']}")


def _facts(rows: Sequence[Row]) -> str:
    sources = sorted({f"{r['source']} by {r['meter']}, profile {r['profile']}" for r in rows if r.get("source")})
    seeds = sorted({row["seed"] for row in rows})
    return (
        f"accuracy on the {rows[0]['part']} images, seeds {', '.join(map(str, seeds))}; each system is one process on "
        f"{rows[0]['threads']} thread(s), from start to end; joules {'; '.join(sources)}; costs are medians, "
        "÷ above 1 is cheaper"
    )


def _summary(
    table: Table, opponents: Mapping[str, str | None], say: Callable[[str], None], *, familiar: bool = False
) -> None:
    """A line for each system; beside each opponent, by its title, the gain, the worst shift and the saving."""
    head = ["system", "cells", "accuracy %", *(["familiar %"] if familiar else []), "CPU s", "gross J", "peak MB"]
    for title in opponents:
        head += [f"to {title}", *([] if familiar else ["worst"]), f"{title} CPU ÷"]
    lines = []
    for name in table.systems:
        done = table.cells[name]
        failed = f", {len(table.failed[name])} failed" if table.failed[name] else ""
        if not done:
            lines.append([name, f"0{failed}", *[""] * (len(head) - 2)])
            continue
        line = [name, f"{len(done)}{failed}", _number(table.mean(name, "accuracy"), 100, 2)]
        line += [_number(table.mean(name, "familiar"), 100, 2)] if familiar else []
        line += [_number(median(row[column] for row in done.values())) for column in ("cpu_s", "gross_j")]
        line.append(_number(max(row["rss_mb"] for row in done.values()) or None, digits=0))
        for opponent in opponents.values():
            gains = [_number(gain, 100, 2, "+") for gain in table.gain(name, opponent)]
            line += [*gains[: 1 if familiar else 2], _number(table.ratio("cpu_s", opponent, name))]
        lines.append(line)
    _print(head, lines, say)


def _number(value: float | None, scale: float = 1, digits: int = 1, sign: str = "") -> str:
    return "" if value is None else f"{scale * value:{sign}.{digits}f}"


def _print(head: Sequence[str], lines: Iterable[Sequence[str]], say: Callable[[str], None]) -> None:
    """A Markdown table whose columns line up."""
    table = [list(head), *map(list, lines)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    for number, line in enumerate(table):
        others = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        say(f"| {' | '.join([line[0].ljust(widths[0]), *others])} |")
        if number == 0:
            say(f"|{'|'.join('-' * (width + 2) for width in widths)}|")


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """One line for every run; unknown is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "options": " ".join(row["options"])} for row in rows)
