"""*Where did the joules go?* Watts and degrees over time, joules by phase and by epoch, per image and per point."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any, NamedTuple

from edge_sel.edge.outputs.logs import PowerRow
from edge_sel.report import words
from edge_sel.report.blocks import Block, Card, Cards, Chart, Table, Text
from edge_sel.report.charts import INK, MUTED, SERIES, Charts, named_bars, quiet_grid, stacked_bars
from edge_sel.report.read import Record
from edge_sel.units import counted

MOST_EPOCHS = 60
"""Bars that can be told apart."""
MOST_ROWS = 100


class _Stretch(NamedTuple):
    begin_s: float
    end_s: float
    watts: float | None
    temp_c: float | None
    phase: str


def energy_blocks(record: Record, charts: Charts) -> list[Block]:
    """What the meter told, on time and on phases."""
    blocks: list[Block] = []
    if record.past.energy_j is None and not any(epoch.get("energy_j") for epoch in record.epochs):
        why = (record.result.get("energy") or {}).get("why") or "no meter worked"
        blocks.append(Text(f"The joules of this run are not known: {why}. `edge-sel doctor` tells how to fix it."))
    parts = _per_unit(record), _over_time(record, charts), _by_phase(record, charts), _by_epoch(record, charts)
    return [*blocks, *chain(*parts)]


def colour_of(phase: str) -> str:
    """Of a phase, the same in every chart."""
    return SERIES[words.PHASES.index(phase)] if phase in words.PHASES else MUTED


def _per_unit(record: Record) -> list[Block]:
    past, trained = record.past, sum(epoch.get("trained") or 0 for epoch in record.epochs)
    if past.energy_j is None:
        return []
    cards = []
    if trained:
        cards.append(Card("per image trained", words.joules(past.energy_j / trained), counted(trained, "visit")))
    if past.before is not None and past.after is not None and past.after > past.before:
        gained = 100 * (past.after - past.before)
        cards.append(Card("per point of accuracy", words.joules(past.energy_j / gained), f"{gained:.1f} points gained"))
    flops = sum(epoch.get("executed_flops_t") or 0.0 for epoch in record.epochs)
    if flops:
        cards.append(Card("computed in epochs", words.flops(flops), "counted from the graphs that ran"))
    if lost := (record.result.get("energy") or {}).get("lost_j"):
        cards.append(Card("lost to interruptions", words.joules(lost), "counted in the total", "warn"))
    return [Cards(cards)] if cards else []


def _over_time(record: Record, charts: Charts) -> list[Block]:
    stretches = []
    rows_at = {row.seconds: row for row in (PowerRow(0.0, 0.0, None, ""), *record.power)}  # two may round to the same
    for a, b in pairwise(rows_at.values()):
        unknown = a.total_j is None or b.total_j is None
        watts = None if unknown else max(0.0, (b.total_j or 0.0) - (a.total_j or 0.0)) / (b.seconds - a.seconds)
        stretches.append(_Stretch(a.seconds, b.seconds, watts, b.temp_c, b.phase))
    if len(stretches) < 2:
        return []
    hot = any(stretch.temp_c is not None for stretch in stretches)
    decisions = [event for event in record.events if event["event"] == "governor"][:MOST_EPOCHS]
    phases = [name for name in (*words.PHASES, "") if any(stretch.phase == name for stretch in stretches)]

    def paint(power: Any, degrees: Any = None) -> None:
        for name in phases:
            mine = [stretch for stretch in stretches if stretch.phase == name and stretch.watts is not None]
            power.bar(
                [s.begin_s for s in mine], [s.watts for s in mine], [s.end_s - s.begin_s for s in mine],
                align="edge", color=colour_of(name), label=name, linewidth=0,
            )  # fmt: skip
        for event in decisions:
            power.axvline(event["t_s"], color=INK, linewidth=0.8, linestyle=":")
            where = (event["t_s"], 1)
            power.annotate(event.get("action", ""), where, xycoords=("data", "axes fraction"), fontsize=7, rotation=90)
        power.set_ylabel("watts")
        power.legend(ncols=3, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22 if not hot else -0.05))
        quiet_grid(power, "y")
        last = power
        if degrees is not None:
            felt = [stretch for stretch in stretches if stretch.temp_c is not None]
            degrees.plot([s.end_s for s in felt], [s.temp_c for s in felt], color=SERIES[1])
            degrees.set_ylabel("°C")
            quiet_grid(degrees, "y")
            last = degrees
        last.set_xlabel("seconds of work")

    size = (10.4, 4.6 if hot else 3.2)
    svg = charts.draw(paint, size=size, panels=2 if hot else 1, below=hot)
    table = Table(
        "Watts and degrees over time", ["from", "to", "watts", "°C", "mostly"],
        [[words.seconds(s.begin_s), words.seconds(s.end_s), words.number(s.watts, 1), words.number(s.temp_c, 1),
          s.phase] for s in stretches[:: max(1, -(-len(stretches) // MOST_ROWS))]],
    )  # fmt: skip
    known = [stretch.watts for stretch in stretches if stretch.watts is not None]
    top = f"at most {max(known):.1f} W" if known else "watts are not known"
    summary = f"{len(stretches)} stretches in {words.seconds(stretches[-1].end_s)}, {top}."
    title = "Watts" + (" and degrees" if hot else "") + " over time, by what the run did"
    blocks: list[Block] = [Chart(title, svg, summary, table, wide=True)]
    if decisions:
        rows = [
            [words.seconds(e["t_s"]), str(e.get("action")), str(e.get("limit")), str(e.get("why") or "")]
            for e in decisions
        ]
        blocks.append(Table("Decisions of the governor", ["at", "decision", "limit", "why"], rows))
    return blocks


def _by_phase(record: Record, charts: Charts) -> list[Block]:
    phases = (record.result.get("energy") or {}).get("phases") or {}
    parts = [(name, part) for name, part in phases.items() if part.get("total_j")]
    parts.sort(key=lambda part: -part[1]["total_j"])
    if not parts:
        return []
    total = sum(part["total_j"] for _, part in parts)

    names = [name for name, _ in parts]

    def paint(axes: Any) -> None:
        colours = [colour_of(name) for name, _ in parts]
        named_bars(axes, names, [part["total_j"] for _, part in parts], colours, "joules, gross")
        for row, (_, part) in enumerate(parts):
            axes.annotate(f" {part['total_j'] / total:.0%}", (part["total_j"], row), va="center", fontsize=8)
        axes.margins(x=0.12)

    rows = [
        [name, words.joules(part["total_j"]), words.joules(part.get("net_j")),
         words.seconds(part.get("seconds")), f"{part['total_j'] / total:.1%}"]
        for name, part in parts
    ]  # fmt: skip
    table = Table("Joules by phase", ["phase", "gross", "above idle", "time", "share"], rows)
    summary = f"Most went into {names[0]}: {parts[0][1]['total_j'] / total:.0%}."
    return [Chart("Joules by phase of the run", charts.draw(paint), summary, table)]


def _by_epoch(record: Record, charts: Charts) -> list[Block]:
    epochs = [epoch for epoch in record.epochs if epoch.get("phases") and epoch.get("energy_j") is not None]
    if not epochs:
        return []
    shown = epochs[-MOST_EPOCHS:]
    heights = {
        name: [(epoch["phases"].get(name) or {}).get("total_j") or 0.0 for epoch in shown] for name in words.PHASES
    }
    parts = [(name, colour_of(name), part) for name, part in heights.items() if any(part)]
    svg = charts.draw(lambda axes: stacked_bars(axes, [e["epoch"] for e in shown], parts, "joules, gross"))
    rows = [
        [str(e["epoch"]), e["plan"], words.joules(e["energy_j"]), e["energy_source"], words.seconds(e.get("time_s")),
         f"{e['trained']} of {e['candidates']}", words.joules(e["energy_j"] / e["trained"] if e["trained"] else None),
         words.flops(e.get("executed_flops_t"))]
        for e in epochs
    ]  # fmt: skip
    columns = ["epoch", "plan", "joules", "source", "time", "images trained", "per image", "computed"]
    summary = f"{counted(len(epochs), 'epoch')}, {words.joules(sum(e['energy_j'] for e in epochs))} together."
    return [Chart("Joules by epoch", svg, summary, Table("Joules by epoch", columns, rows))]
