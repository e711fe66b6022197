"""Draw docs/figures/accuracy_over_joules.svg, the README's chart, from docs/figures/field.csv.

Means over the eight field shifts of what ``tools/field_benchmark.py`` measured; docs/benchmarks.md says how.
"""

from __future__ import annotations

import csv
from pathlib import Path

from field.cells import CAMERA
from field.report import Table
from field.systems import REFERENCE, ROBUST, SCHEDULES, SHIPPED

ROOT = Path(__file__).parents[1]
OURS, TORCH, PLAIN = "#1668c4", "#c2570c", "#6b7785"
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
    from matplotlib.figure import Figure

    table = read_table(ROOT / "docs" / "figures" / "field.csv")
    with rc_context({"svg.hashsalt": "edge-sel", "svg.fonttype": "none", "font.size": 10}):
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
        out = ROOT / "docs" / "figures" / "accuracy_over_joules.svg"
        figure.savefig(out, metadata={"Date": None})
    print(out.relative_to(ROOT))


if __name__ == "__main__":
    main()
