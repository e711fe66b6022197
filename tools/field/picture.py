"""Accuracy against processor time: the dense schedules as curves, the others as points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_sel.errors import SetupError
from field.cells import CAMERA
from field.report import Table
from field.results import Row
from field.systems import OURS, REFERENCE, ROBUST, SCHEDULES, SHIPPED

NAMES = {"auto": "edge-sel", "head": "torch head", "bn": "torch statistics", "last": "torch last stage"}
MARKERS = {"auto": "*", "head": "s", "bn": "^", "last": "D"}


def draw(path: Path, rows: Sequence[Row]) -> None:
    """A panel for the mean over the shifts and one for each shift; the dense schedules are joined.

    Raises:
        SetupError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SetupError("no picture without matplotlib", fix="pip install matplotlib") from error
    shifts = [shift for shift in CAMERA if any(row["shift"] == shift for row in rows)]
    titles = [f"mean of {len(shifts)} shifts", *(shift.replace("_", " ") for shift in shifts)]
    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(5 * columns, 4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, title, names in zip(panels, titles, [shifts, *([shift] for shift in shifts)], strict=False):
        _panel(panel, Table(rows, names))
        panel.set_title(title)
    for panel in panels[len(titles) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)


def _panel(panel, table: Table) -> None:  # type: ignore[no-untyped-def]
    for start, colour, words in (("", "0.35", "plain warmup"), (ROBUST, "C0", "robust warmup")):
        dense = [name + start for name in (*SCHEDULES, REFERENCE) if table.cells[name + start]]
        panel.plot(*_points(table, dense), "o-", color=colour, label=f"torch dense, 1 epoch and more, {words}")
        for name, marker in MARKERS.items():
            if table.cells[name + start]:
                ours, star = name in OURS, name == "auto"
                panel.plot(
                    *_points(table, [name + start]), marker, color="C3" if ours and start else colour,
                    markersize=15 if star else 6, zorder=3 if star else 2, label=f"{NAMES[name]}, {words}",
                )  # fmt: skip
        if table.cells[SHIPPED + start]:
            level = 100 * (table.mean(SHIPPED + start, "accuracy") or 0)
            panel.axhline(level, color=colour, linestyle=":", label=f"as shipped, {words}")
    panel.set_xscale("log")
    panel.set_xticks([2, 5, 10, 20, 50], [str(tick) for tick in (2, 5, 10, 20, 50)])
    panel.minorticks_off()
    panel.set_xlabel("processor seconds, whole process")
    panel.set_ylabel("accuracy in %")
    panel.grid(alpha=0.25)


def _points(table: Table, names: Sequence[str]) -> tuple[list[float], list[float]]:
    return (
        [table.mean(name, "cpu_s") or float("nan") for name in names],
        [100 * (table.mean(name, "accuracy") or float("nan")) for name in names],
    )
