"""Accuracy against joules, one curve for each system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_sel.errors import SetupError
from field.cells import CAMERA
from field.report import Table
from field.results import Row
from field.systems import OURS, REFERENCE, SCHEDULES, SHIPPED


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
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)


def _panel(panel, table: Table) -> None:  # type: ignore[no-untyped-def]
    dense = [name for name in (*SCHEDULES, REFERENCE) if table.cells[name]]
    panel.plot(*_points(table, dense), "o-", color="0.35", label="torch dense, 1 to 10 epochs")
    others = [n for n in table.systems if n not in (*dense, SHIPPED) and table.cells[n]]
    for number, name in enumerate(others):
        marker = "*" if name == "auto" else "D" if name in OURS else "s"
        panel.plot(*_points(table, [name]), marker, color=f"C{number % 10}", markersize=12 if marker == "*" else 6,
                   label=name if name in OURS else f"torch {name}")  # fmt: skip
    if table.cells[SHIPPED]:
        panel.axhline(100 * (table.mean(SHIPPED, "accuracy") or 0), color="0.7", linestyle=":", label="as shipped")
    panel.set_xscale("log")
    panel.set_xlabel("gross joules, whole process")
    panel.set_ylabel("accuracy in %")
    panel.grid(alpha=0.25)


def _points(table: Table, names: Sequence[str]) -> tuple[list[float], list[float]]:
    return (
        [table.mean(name, "gross_j") or float("nan") for name in names],
        [100 * (table.mean(name, "accuracy") or float("nan")) for name in names],
    )
