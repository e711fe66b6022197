"""Draw the README's charts, from docs/figures/photos.csv and docs/figures/field.csv.

``paintings.svg``: means over seeds of what ``tools/photo_benchmark.py --csv`` measured with 40 paintings a class.
``accuracy_over_joules.svg``: means over the eight field shifts of what ``tools/field_benchmark.py`` measured.
docs/benchmarks.md says how.
"""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from field.cells import CAMERA
from field.report import Table
from field.systems import REFERENCE, ROBUST, SCHEDULES, SHIPPED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
OURS, TORCH, PLAIN = "#1668c4", "#c2570c", "#6b7785"
PHOTO_SYSTEMS = {
    "default": ("*", OURS, "edge-sel, default"), "torch-head": ("s", TORCH, "torch, head, 10 epochs"),
    "torch-5": ("D", TORCH, "torch, dense, 5 epochs"), "torch-20": ("o", TORCH, "torch, dense, 20 epochs"),
    "logistic": ("^", PLAIN, "logistic regression"), "imprint": ("v", PLAIN, "class means"),
}  # fmt: skip
NUMBERS = ("accuracy", "cpu_s", "gross_j")


def read_table(path: Path) -> Table:
    """The finished rows of the CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            {**row, **{key: float(row[key]) for key in NUMBERS}} for row in csv.DictReader(file) if not row["failed"]
        ]
    shifts = [shift for shift in CAMERA if any(row["shift"] == shift for row in rows)]
    return Table(rows, shifts)


def point(table: Table, system: str) -> tuple[float, float]:
    """Joules and accuracy in per cent."""
    return table.mean(system, "gross_j") or 0.0, 100 * (table.mean(system, "accuracy") or 0.0)


def main() -> None:
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "edge-sel", "svg.fonttype": "none", "font.size": 10}):
        for name, draw in (("paintings", draw_paintings), ("accuracy_over_joules", draw_shifts)):
            out = FIGURES / f"{name}.svg"
            draw().savefig(out, metadata={"Date": None})
            print(out.relative_to(ROOT))


def draw_paintings() -> Figure:
    """What is learnt, and what is left of what was known, over processor time."""
    from matplotlib.figure import Figure

    with (FIGURES / "photos.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == "paintings-40"]

    def of(system: str, key: str) -> float:
        return fmean(float(row[key]) for row in rows if row["system"] == system and row[key])

    figure = Figure(figsize=(7.2, 3.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2)
    there = {row["system"] for row in rows}
    for axes, key, title in zip(
        panels, ("test", "server"), ("paintings, new", "photographs, known before"), strict=True
    ):
        for system, (mark, colour, words) in PHOTO_SYSTEMS.items():
            if system in there:
                size = 16 if mark == "*" else 7
                axes.plot([of(system, "cpu_s")], [100 * of(system, key)], mark, color=colour, ms=size, label=words)
        axes.axhline(100 * of("shipped", key), color=OURS, linestyle=":", label="as it came")
        axes.set_xscale("log")
        axes.set_xticks([5, 10, 30, 100, 300], ["5", "10", "30", "100", "300"])
        axes.minorticks_off()
        axes.set_xlabel("CPU seconds, whole process")
        axes.set_title(f"{title}: % right", fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, words = panels[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside right center", fontsize=8, frameon=False)
    return figure


def draw_shifts() -> Figure:
    """Accuracy over joules."""
    from matplotlib.figure import Figure

    table = read_table(FIGURES / "field.csv")
    figure = Figure(figsize=(7.2, 3.8), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for start, colour, words in (("", PLAIN, "plain checkpoint"), (ROBUST, TORCH, "robust checkpoint")):
        dense = [point(table, name + start) for name in (*SCHEDULES, REFERENCE) if table.cells[name + start]]
        axes.plot(*zip(*sorted(dense), strict=True), "o-", color=colour, label=f"torch, dense epochs, {words}")
        for name, mark in (("head", "s"), ("last", "D")):
            x, y = point(table, name + start)
            axes.plot([x], [y], mark, color=colour, label=f"torch, {name}, {words}")
    axes.axhline(point(table, SHIPPED + ROBUST)[1], color=OURS, linestyle=":", label="robust pack as it came")
    axes.plot(
        *[[value] for value in point(table, "auto" + ROBUST)],
        "*",
        color=OURS,
        markersize=18,
        label="edge-sel, default",
    )
    axes.set_xscale("log")
    axes.set_xticks([20, 50, 100, 200, 400], ["20", "50", "100", "200", "400"])
    axes.minorticks_off()
    axes.set_xlabel("joules of the whole process, modelled")
    axes.set_ylabel("accuracy in %, mean of 8 shifts")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main()
