"""*Against the reference*: the published systems as they ran here, beside their claims and beside a fine-tune run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sel.errors import UsageError
from edge_sel.reference.results import Result, compare_claims, list_results, overview, reference_epochs
from edge_sel.report import words
from edge_sel.report.blocks import Block, Chart, Part, Section, Table, Text
from edge_sel.report.charts import INK, MUTED, SERIES, Charts, epoch_axis, percent_axis, quiet_grid
from edge_sel.report.read import Record
from edge_sel.report.side_by_side import pareto

CURVES = (
    ("test_full", "test accuracy", True), ("train_loss", "training loss, nats", False),
    ("executed_flops_t", "executed FLOPs of an epoch, 10¹²", False), ("sparsity", "share of weights not updated", True),
)  # fmt: skip
MOST_CLASSES = 10
MOST_NAMED = 12
"""Points of a chart that all have room for a name; of more, those on the front are named."""


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
    labels = list(dict.fromkeys(result["label"] for result in results if result["label"]))
    sections = [
        Section(
            "What did accuracy cost?", [*(Text(label) for label in labels), *_front(systems, charts), _systems(systems)]
        ),
        Section("How did they learn?", _curves(results, charts)),
        Section("Which classes were hard?", _classes(results, charts)),
        Section("What was claimed, and what came out?", [_claims(results)]),
        Section("Edge joules beside reference joules", [_per_epoch(results, records)]),
    ]
    environments = dict.fromkeys(_machine(result) for result in results)
    return Part("Against the reference", f"{folder}: {'; '.join(filter(None, environments))}", sections)


def _machine(result: Result) -> str:
    found = result.get("environment") or {}
    return ", ".join(str(found[key]) for key in ("device", "gpu", "torch") if found.get(key))


def _front(systems: Sequence[dict[str, Any]], charts: Charts) -> list[Block]:
    known = [row for row in systems if row["energy_j"] is not None]
    key, unit = ("energy_j", "joules of a run") if known else ("executed_flops_t", "executed FLOPs of a run, 10¹²")
    known = known or list(systems)
    front = pareto([(row[key], row["test_full"]) for row in known])

    def paint(axes: Any) -> None:
        for number, row in enumerate(known):
            colour = SERIES[0] if number in front else MUTED
            axes.errorbar(
                [row[key]], [row["test_full"]], xerr=[row.get(f"{key}_std") or 0], yerr=[row["test_full_std"] or 0],
                fmt="o", color=colour, capsize=2, linewidth=1,
            )  # fmt: skip
            if number in front or len(known) <= MOST_NAMED:
                where = (row[key], row["test_full"])
                axes.annotate(row["system"], where, (5, 4), textcoords="offset points", fontsize=8, color=INK)
        axes.plot([known[n][key] for n in front], [known[n]["test_full"] for n in front], color=SERIES[0], linewidth=1)
        axes.set_xlabel(unit)
        axes.set_ylabel("test accuracy")
        axes.margins(x=0.15, y=0.15)
        percent_axis(axes.yaxis)
        quiet_grid(axes, "both")

    rows = [
        [row["system"], f"{row[key]:.4g}", words.percent(row["test_full"]), "yes" if n in front else ""]
        for n, row in enumerate(known)
    ]  # fmt: skip
    title = f"Test accuracy over {unit}; mean ± standard deviation over seeds, and the Pareto front"
    summary = f"On the front: {', '.join(known[n]['system'] for n in front)}."
    table = Table(title, ["system", unit, "test accuracy", "on the front"], rows)
    return [Chart(title, charts.draw(paint, size=(10.4, 4.2)), summary, table, wide=True)]


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
    first = [result for n, result in enumerate(results) if result["system"] not in {r["system"] for r in results[:n]}]
    blocks: list[Block] = []
    for key, title, share in CURVES:
        lines = {
            r["system"]: [(e["epoch"], e[key]) for e in r["rows"] if e.get(key) is not None and "epoch" in e]
            for r in first
        }
        lines = {name: line for name, line in lines.items() if line}
        if lines:
            blocks.append(_lines(lines, f"{title[0].upper()}{title[1:]} over epochs", title, charts, share=share))
    return blocks or [Text("The rows of these results have no epochs.")]


def _lines(lines: dict[str, list[tuple[int, float]]], title: str, unit: str, charts: Charts, *, share: bool) -> Chart:
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
    return Chart(title, charts.draw(paint, size=(5.2, 3.6)), summary, table)


def _classes(results: Sequence[Result], charts: Charts) -> list[Block]:
    """Embarrassment of each class over epochs, of the system that has the most epochs with it; all at their ends."""
    curved = max(results, key=lambda result: sum("E_" in key for row in result["rows"] for key in row))
    names = [key for key in curved["rows"][-1] if key.startswith("E_")][:MOST_CLASSES]
    lines = {
        name[2:]: [(row["epoch"], row[name]) for row in curved["rows"] if row.get(name) is not None and "epoch" in row]
        for name in names
    }  # fmt: skip
    lines = {name: line for name, line in lines.items() if line}
    blocks: list[Block] = []
    if lines:
        title = f"Embarrassment (per-class loss) over epochs, {curved['system']}"
        blocks.append(_lines(lines, title, "nats", charts, share=False))
    rows = []
    for result in results:
        per_class = result["summary"]["per_class"]
        worst = min(per_class, key=lambda name: per_class[name].get("acc") or 0.0, default=None)
        if worst is not None:
            accuracies = [figures["acc"] for figures in per_class.values() if figures.get("acc") is not None]
            spread = (
                f"{words.percent(min(accuracies))} to {words.percent(max(accuracies))}" if accuracies else words.NONE
            )
            rows.append([result["system"], str(result["seed"]), worst, spread])
    blocks.append(Table("The hardest class of each run", ["system", "seed", "class", "accuracy of classes"], rows))
    return blocks


def _claims(results: Sequence[Result]) -> Table:
    rows = []
    for claim in compare_claims(results):
        if claim["epoch"] is not None or claim["ours"] is None:
            continue
        ours = words.NONE if claim["ours"] is None else f"{claim['ours']:.4g}"
        if claim["std"] is not None:
            ours += f" ± {claim['std']:.2g}"
        difference = words.NONE if claim["difference"] is None else f"{claim['difference']:+.3g}"
        comparable = "yes" if claim["comparable"] else "no"
        rows.append(
            [claim["system"], claim["metric"], f"{claim['claim']:.4g}", ours, difference, comparable, claim["source"]]
        )
    columns = ["system", "figure", "claim", "here", "difference", "comparable", "source"]
    return Table("Published figures beside those of this folder", columns, rows)


def _per_epoch(results: Sequence[Result], records: Sequence[Record]) -> Table:
    rows = [
        [f"edge, {record.name}", f"{epoch['epoch']} ({epoch['plan']})", *_cost(epoch, epoch.get("trained") or 0)]
        for record in records
        for epoch in record.epochs
    ]  # fmt: skip
    rows += [[f"reference, {row['system']}", "mean", *_cost(row, row["images"])] for row in reference_epochs(results)]
    columns = ["run", "epoch", "images", "joules", "source", "per image", "computed"]
    return Table("Joules of an epoch", columns, rows)


def _cost(row: dict[str, Any], images: float) -> list[str]:
    energy_j = row.get("energy_j")
    each = energy_j / images if energy_j is not None and images else None
    return [
        f"{images:.0f}", words.joules(energy_j), str(row.get("energy_source")), words.joules(each),
        words.flops(row.get("executed_flops_t")),
    ]  # fmt: skip
