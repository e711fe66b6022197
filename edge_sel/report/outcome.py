"""*Did it work?* and *What changed?*: verdict, cost, and what dense training would have cost; then the weights."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from edge_sel.report import words
from edge_sel.report.blocks import Block, Card, Cards, Chart, Table, Text
from edge_sel.report.charts import INK, MUTED, SERIES, Charts, named_bars, percent_axis, plain_ticks, quiet_grid, short
from edge_sel.report.read import Record
from edge_sel.units import counted

MOST_BARS = 30
MOST_ROWS = 300
VERDICTS = {
    "shipped": "The new model ships", "kept": "The original model stays", "stopped": "Stopped before its end",
    "unfinished": "Not finished", "damaged": "The result cannot be read",
}  # fmt: skip


def verdict_blocks(record: Record, charts: Charts) -> list[Block]:
    """The first thing that is read."""
    past, result = record.past, record.result
    tone = {"shipped": "good", "kept": "", "stopped": "warn", "unfinished": "warn", "damaged": "warn"}[past.verdict]
    cards = [Card("verdict", VERDICTS[past.verdict], _reason(record), tone), _accuracy(record), _energy(record)]
    cards += _dense(result)
    blocks: list[Block] = [Cards(cards)]
    if past.verdict in ("stopped", "unfinished"):
        blocks.append(Text("It goes on with --resume; the figures here are those of the finished epochs."))
    return [*blocks, *_course(record, charts), _what_was_run(record)]


def _reason(record: Record) -> str:
    if record.past.why:
        return f"by {record.past.why}"
    evidence = record.result.get("evidence")
    return str(evidence["why"]) if evidence else ""


def _accuracy(record: Record) -> Card:
    past, evidence = record.past, record.result.get("evidence")
    before, after, on = past.before, past.after, past.on
    if before is None and (measured := record.result.get("accuracy")):
        before, on = measured["before"], measured["on"]
    if after is None and record.epochs:
        after, on = record.epochs[-1].get("validation_acc"), "validation"
        before = record.epochs[0].get("best_acc", before)
    images = (record.result.get("images") or {}).get(on)
    note = f"on {counted(images, f'{on} image')}" if images and on in words.ON else ""
    if (own := (record.result.get("accuracy") or {}).get("pack")) is not None:
        note += f"; {words.percent(own)} by the pack's own model"
    if evidence:
        level = f"{evidence['level']:.0%} interval"
        note += (
            f"; gain {words.points(evidence['gain'])}, {level} {100 * evidence['low']:+.1f} to "
            f"{100 * evidence['high']:+.1f}, on {counted(evidence['images'], 'image')} that nothing was learnt from"
        )
    errors = [((record.result.get(key) or {}).get(on) or {}).get("calibration_error") for key in ("before", "after")]
    if None not in errors:
        note += f"; calibration error {words.percent(errors[0])} → {words.percent(errors[1])}"
    return Card("accuracy, before → after", f"{words.percent(before)} → {words.percent(after)}", note.lstrip("; "))


def _energy(record: Record) -> Card:
    past, energy = record.past, record.result.get("energy") or {}
    if past.energy_j is None:
        why = energy.get("why") or "no meter worked"
        return Card("energy", "unavailable", f"{why}; {words.seconds(past.time_s)}")
    note = f"{past.energy_source}" + (f" by {energy['meter']}" if energy.get("meter") else "")
    if energy.get("uncertainty_j") is not None:
        note += f", ± {words.joules(energy['uncertainty_j'])}"
    if energy.get("net_j") is not None:
        note += f"; {words.joules(energy['net_j'])} above idle"
    return Card("energy", words.joules(past.energy_j), f"{note}; in {words.seconds(past.time_s)}")


def _dense(result: dict[str, Any]) -> list[Card]:
    dense = result.get("dense")
    if not dense:
        return []
    passes = "one pass" if dense["epochs"] == 1 else f"{dense['epochs']} passes"
    value = words.joules(dense["energy_j"]) if dense["energy_j"] is not None else words.flops(dense["flops_t"])
    note = f"forecast, not measured: {passes} over every training image with the plan {dense['plan']} "
    note += f"({words.flops(dense['flops_t'])} at this run's joules per FLOP), opening and evaluation as here"
    return [Card("the same, trained dense", value, note)]


def _course(record: Record, charts: Charts) -> list[Block]:
    """Accuracy over joules, or over time where there are none."""
    epochs = [epoch for epoch in record.epochs if epoch.get("validation_acc") is not None]
    if not epochs:
        return []
    priced = all(epoch.get("energy_j") is not None for epoch in epochs)
    key, unit = ("energy_j", "joules") if priced else ("time_s", "seconds")
    spent, total = [0.0], 0.0
    for epoch in epochs:
        total += epoch[key] or 0.0
        spent.append(total)
    accuracy = [epochs[0].get("best_acc"), *(epoch["validation_acc"] for epoch in epochs)]
    plans = ["before", *(epoch["plan"] for epoch in epochs)]
    undone = [False, *(epoch.get("kept") is False for epoch in epochs)]
    known = [row for row in zip(spent, accuracy, plans, undone, strict=True) if row[1] is not None]

    def paint(axes: Any) -> None:
        axes.plot([row[0] for row in known], [row[1] for row in known], color=SERIES[0], zorder=1)
        for x, y, plan, lost in known:
            axes.scatter([x], [y], s=34, color=MUTED if lost else SERIES[0], zorder=2)
            axes.annotate(plan, (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=INK)
        axes.set_xlabel(f"{unit} spent in epochs")
        axes.set_ylabel("validation accuracy")
        axes.margins(x=0.08, y=0.18)
        percent_axis(axes.yaxis)
        quiet_grid(axes, "y")

    rows = [[plan + (" (undone)" if lost else ""), f"{x:.4g}", words.percent(y)] for x, y, plan, lost in known]
    price = (words.joules if priced else words.seconds)(known[-1][0])
    summary = f"From {words.percent(known[0][1])} to {words.percent(known[-1][1])} for {price}."
    table = Table("Accuracy over the run", ["after", unit, "validation accuracy"], rows)
    return [Chart(f"Validation accuracy over {unit}", charts.draw(paint), summary, table)]


def _what_was_run(record: Record) -> Table:
    result = record.result
    images = result.get("images") or {}
    rows = [
        ["pack", _pack(str(result.get("pack", words.NONE)))], ["images", str(result.get("source", words.NONE))],
        ["trained on", counted(images["train"], "image") if images.get("train") else words.NONE],
        ["validation", counted(images["validation"], "image") if images.get("validation") else words.NONE],
        ["plan", str(result.get("plan", record.past.plan or words.NONE))],
        ["engine", str(result.get("engine", words.NONE))],
        ["stopped by", record.past.why or words.NONE], ["folder", str(record.past.folder)],
    ]  # fmt: skip
    for line in result.get("throttled", ()):
        rows.append(["slowed down", str(line)])
    if result.get("batch_limit"):
        rows.append(["memory was short", f"batches of at most {result['batch_limit']} images"])
    return Table("What was run", ["", ""], rows)


def _pack(path: str) -> str:
    """The path, but of the pack that ships with edge-sel only its name."""
    builtin = PurePath(path).match("edge_sel/pack/assets/digits.edgepack")
    return "built-in (digits.edgepack)" if builtin else path


def changes_blocks(record: Record, charts: Charts) -> list[Block]:
    """From the weights, then from the decisions."""
    return _weights(record, charts) + _heads(record) + _schedule(record)


def _weights(record: Record, charts: Charts) -> list[Block]:
    changed = record.result.get("changed")
    if changed is None:
        return []
    if not changed:
        return [Text("No weight differs from the original model.")]
    shown = sorted(changed, key=lambda tensor: -(tensor["relative"] or 0.0))[:MOST_BARS]
    shown = [tensor for tensor in changed if tensor in shown]

    def paint(axes: Any) -> None:
        names, values = (
            [short(tensor["weight"], 40) for tensor in shown],
            [tensor["relative"] or 0.0 for tensor in shown],
        )
        named_bars(axes, names, values, SERIES[0], "change, as a share of the tensor's own size (Frobenius norm)")
        positive = [value for value in values if value]
        if positive and max(positive) > 50 * min(positive):
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)

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
        [str(epoch["epoch"]), weight, f"{head['chosen']} of {head['of']}",
         ", ".join(map(str, head.get("chosen_heads", ()))) or words.NONE, words.percent(head["share_of_norm"]),
         ", ".join(f"{norm:.3g}" for norm in head.get("heads", ())) or words.NONE]
        for epoch in record.epochs
        for weight, head in (epoch.get("guilty") or {}).items()
    ]  # fmt: skip
    if not rows:
        return []
    columns = ["epoch", "weight", "chosen", "heads", "share of the gradient norm", "guilt of each head"]
    title = "Guilty channels and attention heads (those with the largest gradient norm)"
    return [Table(title, columns, rows[:MOST_ROWS])]


def _schedule(record: Record) -> list[Block]:
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
