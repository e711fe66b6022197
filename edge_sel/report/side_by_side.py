"""Several runs in one table and one chart, with the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_sel.report import words
from edge_sel.report.blocks import Block, Chart, Part, Section, Table, Text
from edge_sel.report.charts import INK, MUTED, SERIES, Charts, percent_axis, quiet_grid, short
from edge_sel.report.read import Record
from edge_sel.report.verdict import VERDICTS

MOST_NAMED = 20
"""Points of a chart that have room for a name."""


def side_by_side(records: Sequence[Record], charts: Charts) -> Part:
    """Verdicts, accuracy over joules, and differences of settings."""
    sections = [
        Section("How did they end?", [_overview(records), *_cost(records, charts)]),
        Section("In what do they differ?", _differences(records)),
    ]
    return Part(f"{len(records)} runs side by side", "", sections)


def _overview(records: Sequence[Record]) -> Table:
    rows = []
    for record in records:
        past = record.past
        verdict = VERDICTS[past.verdict] + (f" ({past.why})" if past.why else "")
        rows.append([
            record.name, past.plan or words.NONE, verdict, words.percent(past.before), words.percent(past.after),
            words.ON.get(past.on, words.NONE), words.joules(past.energy_j), past.energy_source or words.NONE,
            words.seconds(past.time_s),
        ])  # fmt: skip
    columns = ["run", "plan", "verdict", "before", "after", "images", "joules", "source", "time"]
    marked = frozenset(number for number, record in enumerate(records) if record.past.verdict == "shipped")
    return Table("Runs; those that shipped a new model are marked", columns, rows, marked)


def _cost(records: Sequence[Record], charts: Charts) -> list[Block]:
    known = [r for r in records if r.past.after is not None and r.past.energy_j is not None]
    if len(known) < 2:
        return []
    front = pareto([(r.past.energy_j or 0.0, r.past.after or 0.0) for r in known])

    def paint(axes: Any) -> None:
        for number, record in enumerate(known):
            x, y = record.past.energy_j, record.past.after
            axes.scatter([x], [y], s=36, color=SERIES[0] if number in front else MUTED, zorder=2)
            if len(known) <= MOST_NAMED:
                axes.annotate(short(record.name), (x, y), (5, 4), textcoords="offset points", fontsize=8, color=INK)
        _join(axes, [(known[n].past.energy_j or 0.0, known[n].past.after or 0.0) for n in front])
        axes.set_xlabel("joules of the whole run")
        axes.set_ylabel("accuracy after")
        axes.margins(x=0.15, y=0.12)
        percent_axis(axes.yaxis)
        quiet_grid(axes, "both")

    columns = ["run", "joules", "source", "accuracy after", "on the front"]
    rows = [
        [r.name, words.joules(r.past.energy_j), r.past.energy_source, words.percent(r.past.after), _yes(n in front)]
        for n, r in enumerate(known)
    ]  # fmt: skip
    title = "Accuracy over joules; the line is the Pareto front (no other run is better and cheaper)"
    summary = f"{len(front)} of {len(known)} runs are on the Pareto front: {', '.join(known[n].name for n in front)}."
    table = Table("Accuracy over joules", columns, rows)
    return [Chart(title, charts.draw(paint, size=(10.4, 4.0)), summary, table, wide=True)]


def _yes(value: bool) -> str:
    return "yes" if value else ""


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points of which no other costs less (first) and gives as much (second), by their cost."""
    front: list[int] = []
    best = float("-inf")
    for number in sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1])):
        if points[number][1] > best:
            front.append(number)
            best = points[number][1]
    return front


def _join(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    axes.plot([x for x, _ in points], [y for _, y in points], color=SERIES[0], linewidth=1.2, zorder=1)


def _differences(records: Sequence[Record]) -> list[Block]:
    columns = [{"pack": r.result.get("pack"), "images": r.result.get("source"), **r.settings} for r in records]
    names = list(dict.fromkeys(name for settings in columns for name in settings))
    rows = []
    for name in names:
        values = [_shown(settings, name) for settings in columns]
        if len({*values}) > 1:
            rows.append([name, *values])
    if not rows:
        return [Text("All of them had the same pack, images and settings.")]
    if len(records) > MOST_NAMED:  # one row for each run fits where one column does not
        table = [list(cells) for cells in zip(*rows, strict=True)]
        runs = [[record.name, *cells] for record, cells in zip(records, table[1:], strict=True)]
        return [Table("Settings in which they differ", ["run", *table[0]], runs)]
    return [Table("Settings in which they differ", ["setting", *(record.name for record in records)], rows)]


def _shown(settings: dict[str, Any], name: str) -> str:
    value = settings.get(name)
    return words.NONE if value is None else str(value)
