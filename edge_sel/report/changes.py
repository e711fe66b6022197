"""*What changed?* The layers and channels that were updated, which attention heads, and what the ladder thought."""

from __future__ import annotations

from typing import Any

from edge_sel.report import words
from edge_sel.report.blocks import Block, Chart, Section, Table, Text
from edge_sel.report.charts import SERIES, Charts, plain_ticks, quiet_grid, short
from edge_sel.report.read import Record
from edge_sel.units import counted

MOST_BARS = 30
MOST_ROWS = 300


def changes_section(record: Record, charts: Charts) -> Section:
    """From the weights, then from the decisions."""
    blocks = _weights(record, charts) + _heads(record) + _ladder(record)
    if not blocks:
        blocks.append(Text("The files of this run do not contain this yet."))
    return Section("What changed?", blocks)


def _weights(record: Record, charts: Charts) -> list[Block]:
    changed = record.result.get("changed")
    if changed is None:
        return []
    if not changed:
        return [Text("No weight differs from the original model.")]
    shown = sorted(changed, key=lambda tensor: -(tensor["relative"] or 0.0))[:MOST_BARS]
    shown = [tensor for tensor in changed if tensor in shown]

    def paint(axes: Any) -> None:
        rows = range(len(shown))
        axes.barh(rows, [tensor["relative"] or 0.0 for tensor in shown], color=SERIES[0], height=0.7)
        axes.set_yticks(rows, [short(tensor["weight"], 40) for tensor in shown])
        axes.invert_yaxis()
        axes.set_xlabel("change, as a share of the tensor's own size (Frobenius norm)")
        positive = [tensor["relative"] for tensor in shown if tensor["relative"]]
        if positive and max(positive) > 50 * min(positive):
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)
        quiet_grid(axes, "x")

    svg = charts.draw(paint, size=(10.4, 1.0 + 0.22 * len(shown)))
    rows = [
        [tensor["weight"], words.NONE if tensor["relative"] is None else f"{tensor['relative']:.3g}",
         f"{tensor['updated']} of {tensor['channels']}"]
        for tensor in changed[:MOST_ROWS]
    ]  # fmt: skip
    columns = ["tensor", "relative change", "output channels updated"]
    title = "How far each tensor moved, in the order of the network"
    if len(changed) > len(shown):
        title += f": the {len(shown)} of {len(changed)} that moved most"
    updated, of = (sum(tensor[key] for tensor in changed) for key in ("updated", "channels"))
    summary = f"{counted(len(changed), 'tensor')} changed, {updated} of their {of} output channels."
    return [Chart(title, svg, summary, Table(title, columns, rows), wide=True)]


def _heads(record: Record) -> list[Block]:
    rows = [
        [str(epoch["epoch"]), weight, f"{told['chosen']} of {told['of']}",
         ", ".join(map(str, told.get("chosen_heads", ()))) or words.NONE, words.percent(told["share_of_norm"]),
         ", ".join(f"{norm:.3g}" for norm in told.get("heads", ())) or words.NONE]
        for epoch in record.epochs
        for weight, told in (epoch.get("guilty") or {}).items()
    ]  # fmt: skip
    if not rows:
        return []
    columns = ["epoch", "weight", "chosen", "heads", "share of the gradient norm", "guilt of each head"]
    title = "Guilty channels and attention heads (those with the largest gradient norm)"
    return [Table(title, columns, rows[:MOST_ROWS])]


def _ladder(record: Record) -> list[Block]:
    decisions = record.result.get("decisions") or []
    rows = []
    for decision in decisions:
        expected, came = decision.get("expected") or {}, decision.get("came") or {}
        rows.append([
            decision.get("plan") or "end", str(decision.get("epochs") or ""), str(decision.get("why", "")),
            words.points(expected.get("gain")), words.points(came.get("gain")),
            words.joules(expected.get("energy_j")), words.joules(came.get("energy_j")),
        ])  # fmt: skip
    if not rows:
        return []
    columns = ["stage", "epochs", "why", "gain expected", "came", "joules expected", "came"]
    return [Table("Training stages, and why each was chosen", columns, rows)]
