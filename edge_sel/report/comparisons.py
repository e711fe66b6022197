"""Runs side by side, and *Against the reference*: the published systems as they ran here, and their claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edge_sel.errors import UsageError
from edge_sel.reference.results import Result, compare_claims, list_results, overview, reference_epochs
from edge_sel.report import words
from edge_sel.report.blocks import Block, Cells, Chart, Part, Section, Table, Text
from edge_sel.report.charts import INK, MUTED, SERIES, Charts, epoch_axis, percent_axis, quiet_grid, short
from edge_sel.report.outcome import VERDICTS
from edge_sel.report.read import Record

CURVES = (
    ("test_full", "test accuracy", True), ("train_loss", "training loss, nats", False),
    ("executed_flops_t", "executed FLOPs of an epoch, 10¹²", False), ("sparsity", "share of weights not updated", True),
)  # fmt: skip
MOST_CLASSES = 10
MOST_NAMED = 20
"""Points of a chart, or columns of a table, that have room for a name; of more points those on the front are named."""


class _Point(NamedTuple):
    """Of a chart; ``cells`` are those of its row between its name and the front."""

    name: str
    cost: float
    gain: float
    cells: Cells
    cost_std: float = 0.0
    gain_std: float = 0.0


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
            past.on or words.NONE, words.joules(past.energy_j), past.energy_source or words.NONE,
            words.seconds(past.time_s),
        ])  # fmt: skip
    columns = ["run", "plan", "verdict", "before", "after", "images", "joules", "source", "time"]
    marked = frozenset(number for number, record in enumerate(records) if record.past.verdict == "shipped")
    return Table("Runs; those that shipped a new model are marked", columns, rows, marked)


def _cost(records: Sequence[Record], charts: Charts) -> list[Block]:
    points = []
    for record in records:
        past = record.past
        if past.after is not None and past.energy_j is not None:
            cells = [words.joules(past.energy_j), past.energy_source, words.percent(past.after)]
            points.append(_Point(record.name, past.energy_j, past.after, cells))
    if len(points) < 2:
        return []
    title = "Accuracy over joules; the line is the Pareto front (no other run is better and cheaper)"
    summary = "{on} of {of} runs are on the Pareto front: {names}."
    columns = ["run", "joules", "source", "accuracy after"]
    return [_front_chart(title, points, summary, columns, "joules of the whole run", "accuracy after", charts)]


def _front_chart(
    title: str, points: Sequence[_Point], summary: str, columns: Cells, cost: str, gain: str, charts: Charts
) -> Chart:
    """Points, those on the Pareto front joined; ``cost`` and ``gain`` are the titles of the axes."""
    front = pareto([(point.cost, point.gain) for point in points])

    def paint(axes: Any) -> None:
        for number, point in enumerate(points):
            axes.errorbar(
                [point.cost], [point.gain], xerr=[point.cost_std], yerr=[point.gain_std],
                fmt="o", color=SERIES[0] if number in front else MUTED, capsize=2, linewidth=1,
            )  # fmt: skip
            if number in front or len(points) <= MOST_NAMED:
                where = (point.cost, point.gain)
                axes.annotate(short(point.name), where, (5, 4), textcoords="offset points", fontsize=8, color=INK)
        axes.plot([points[n].cost for n in front], [points[n].gain for n in front], color=SERIES[0], linewidth=1)
        axes.set_xlabel(cost)
        axes.set_ylabel(gain)
        axes.margins(x=0.15, y=0.15)
        percent_axis(axes.yaxis)
        quiet_grid(axes, "both")

    rows = [[point.name, *point.cells, "yes" if n in front else ""] for n, point in enumerate(points)]
    text = summary.format(on=len(front), of=len(points), names=", ".join(points[n].name for n in front))
    table = Table(title, [*columns, "on the front"], rows)
    return Chart(title, charts.draw(paint, size=(10.4, 4.2)), text, table, wide=True)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points of which no other costs less (first) and gives as much (second), by their cost."""
    front: list[int] = []
    best = float("-inf")
    for number in sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1])):
        if points[number][1] > best:
            front.append(number)
            best = points[number][1]
    return front


def _differences(records: Sequence[Record]) -> list[Block]:
    known = [{"pack": r.result.get("pack"), "images": r.result.get("source"), **r.settings} for r in records]
    rows = []
    for name in dict.fromkeys(name for settings in known for name in settings):
        values = [words.NONE if settings.get(name) is None else str(settings[name]) for settings in known]
        if len({*values}) > 1:
            rows.append([name, *values])
    if not rows:
        return [Text("All of them had the same pack, images and settings.")]
    table = [["setting", *(record.name for record in records)], *rows]
    if len(records) > MOST_NAMED:  # one row for each run fits where one column does not
        table = [["run", *cells[1:]] if not n else list(cells) for n, cells in enumerate(zip(*table, strict=True))]
    return [Table("Settings in which they differ", table[0], table[1:])]


def reference_part(folder: Path, records: Sequence[Record], charts: Charts) -> Part:
    """Everything about a folder of `edge-sel reference`.

    Raises:
        UsageError: it has no finished results.
    """
    results = list_results(folder)
    if not results:
        fix = "run `edge-sel reference` first, or name its --out"
        raise UsageError("no finished results of `edge-sel reference`", where=folder, fix=fix)
    systems = overview(results)
    labels = dict.fromkeys(result["label"] for result in results if result["label"])
    sections = [
        Section("What did accuracy cost?", [*map(Text, labels), _front(systems, charts), _systems(systems)]),
        Section("How did they learn?", _curves(results, charts)),
        Section("Which classes were hard?", _classes(results, charts)),
        Section("What was claimed, and what came out?", [_claims(results)]),
        Section("Edge joules beside reference joules", [_per_epoch(results, records)]),
    ]
    machines = dict.fromkeys(
        ", ".join(str(environment[key]) for key in ("device", "gpu", "torch") if environment.get(key))
        for environment in (result.get("environment") or {} for result in results)
    )
    return Part("Against the reference", f"{folder}: {'; '.join(filter(None, machines))}", sections)


def _front(systems: Sequence[dict[str, Any]], charts: Charts) -> Chart:
    known = [row for row in systems if row["energy_j"] is not None]
    key, unit = ("energy_j", "joules of a run") if known else ("executed_flops_t", "executed FLOPs of a run, 10¹²")
    points = [
        _Point(
            row["system"], row[key], row["test_full"], [f"{row[key]:.4g}", words.percent(row["test_full"])],
            row[f"{key}_std"] or 0.0, row["test_full_std"] or 0.0,
        )
        for row in known or systems
    ]  # fmt: skip
    title = f"Test accuracy over {unit}; mean ± standard deviation over seeds, and the Pareto front"
    columns = ["system", unit, "test accuracy"]
    return _front_chart(title, points, "On the front: {names}.", columns, unit, "test accuracy", charts)


def _spread(row: dict[str, Any], key: str) -> str:
    spread = row.get(f"{key}_std")
    return words.percent(row[key]) + ("" if spread is None else f" ± {100 * spread:.1f}")


def _systems(systems: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [row["system"], str(row["seeds"]), _spread(row, "test_full"), words.flops(row["nominal_flops_t"]),
         words.flops(row["executed_flops_t"]), words.joules(row["energy_j"]), row["energy_source"],
         words.seconds(row["time_s"]), words.joules(row["j_per_point"])]
        for row in systems
    ]  # fmt: skip
    columns = ["system", "seeds", "test accuracy", "nominal", "executed", "joules", "source", "time", "J per point"]
    return Table("Each system, mean ± standard deviation over its seeds", columns, rows)


def _curves(results: Sequence[Result], charts: Charts) -> list[Block]:
    first: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        first.setdefault(result["system"], result["rows"])
    blocks: list[Block] = []
    for key, title, share in CURVES:
        lines = {system: _line(rows, key) for system, rows in first.items()}
        blocks += _lines(lines, f"{title[0].upper()}{title[1:]} over epochs", title, charts, share=share)
    return blocks or [Text("The rows of these results have no epochs.")]


def _line(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None and "epoch" in row]


def _lines(
    lines: dict[str, list[tuple[int, float]]], title: str, unit: str, charts: Charts, *, share: bool
) -> list[Block]:
    """A chart of the lines that have points, if there are any."""
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return []

    def paint(axes: Any) -> None:
        for number, (name, line) in enumerate(lines.items()):
            style = "-" if number < len(SERIES) else "--"
            marker = "o" if len(line) < 3 else ""
            x, y = [point[0] for point in line], [point[1] for point in line]
            axes.plot(x, y, style, marker=marker, markersize=3, color=SERIES[number % len(SERIES)], label=name)
        axes.set_ylabel(unit)
        axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        if share:
            percent_axis(axes.yaxis)
        epoch_axis(axes, [epoch for line in lines.values() for epoch, _ in line])
        quiet_grid(axes, "y")

    def shown(value: float) -> str:
        return words.percent(value) if share else f"{value:.4g}"

    rows = [[name, str(len(line)), shown(line[0][1]), shown(line[-1][1])] for name, line in lines.items()]
    best = max(lines, key=lambda name: lines[name][-1][1])
    summary = f"{len(lines)} curves; the highest at its end is {best}."
    table = Table(title, ["curve", "epochs", "first", "last"], rows)
    return [Chart(title, charts.draw(paint, size=(5.2, 3.6)), summary, table)]


def _classes(results: Sequence[Result], charts: Charts) -> list[Block]:
    """Embarrassment of each class over epochs, of the system that has the most epochs with it; all at their ends."""
    curved = max(results, key=lambda result: sum("E_" in key for row in result["rows"] for key in row))
    names = [key for key in curved["rows"][-1] if key.startswith("E_")][:MOST_CLASSES]
    title = f"Embarrassment (per-class loss) over epochs, {curved['system']}"
    lines = {name[2:]: _line(curved["rows"], name) for name in names}
    blocks = _lines(lines, title, "nats", charts, share=False)
    rows = []
    for result in results:
        known = {name: figures.get("acc") for name, figures in result["summary"]["per_class"].items()}
        if known:
            accuracies = [accuracy for accuracy in known.values() if accuracy is not None]
            bounds = (min(accuracies), max(accuracies)) if accuracies else ()
            worst = min(known, key=lambda name: known[name] or 0.0)
            rows.append(
                [result["system"], str(result["seed"]), worst, " to ".join(map(words.percent, bounds)) or words.NONE]
            )
    blocks.append(Table("The hardest class of each run", ["system", "seed", "class", "accuracy of classes"], rows))
    return blocks


def _claims(results: Sequence[Result]) -> Table:
    rows = []
    for claim in compare_claims(results):
        if claim["epoch"] is not None or claim["ours"] is None:
            continue
        ours = f"{claim['ours']:.4g}" + ("" if claim["std"] is None else f" ± {claim['std']:.2g}")
        figures = [f"{claim['claim']:.4g}", ours, f"{claim['difference']:+.3g}", "yes" if claim["comparable"] else "no"]
        rows.append([claim["system"], claim["metric"], *figures, claim["source"]])
    columns = ["system", "figure", "claim", "here", "difference", "comparable", "source"]
    return Table("Published figures beside those of this folder", columns, rows)


def _per_epoch(results: Sequence[Result], records: Sequence[Record]) -> Table:
    rows = [
        [f"edge, {record.name}", f"{epoch['epoch']} ({epoch['plan']})", *_of_epoch(epoch, epoch.get("trained") or 0)]
        for record in records
        for epoch in record.epochs
    ]  # fmt: skip
    rows += [
        [f"reference, {row['system']}", "mean", *_of_epoch(row, row["images"])] for row in reference_epochs(results)
    ]
    columns = ["run", "epoch", "images", "joules", "source", "per image", "computed"]
    return Table("Joules of an epoch", columns, rows)


def _of_epoch(row: dict[str, Any], images: float) -> list[str]:
    energy_j = row.get("energy_j")
    each = energy_j / images if energy_j is not None and images else None
    return [
        f"{images:.0f}", words.joules(energy_j), str(row.get("energy_source")), words.joules(each),
        words.flops(row.get("executed_flops_t")),
    ]  # fmt: skip
