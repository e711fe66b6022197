"""What a person sees of ``edge-sel reference``: progress on stderr, tables on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table

from edge_sel.units import format_duration, format_energy, format_flops


class ReferenceConsole:
    """One line per epoch and per finished run; quiet shows nothing."""

    def __init__(self, quiet: bool) -> None:
        self._console = RichConsole(
            stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True
        )

    def note(self, text: str) -> None:
        """One line of text."""
        self._console.print(text)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event of the suite."""
        name = f"{event['system']} seed {event['seed']}"
        if event["event"] == "epoch":
            self.note(
                f"{name}  {event['epoch']}/{event['epochs']} {event['phase']:<10} loss {_number(event['train_loss'])}  "
                f"test {_percent(event['test_full'])}  active {_percent(event['active_rate'])}  "
                f"{format_energy(event['energy_j'])} {event['energy_source']}"
            )
        elif event["event"] == "resumed":
            self.note(f"{name}  goes on after epoch {event['epoch']}")
        elif event["event"] == "uncompiled":
            self.note(f"{name}  steps are not compiled, which is slower: {event['why']}")
        elif event["event"] == "kept":
            self.note(f"{name}  is finished already")


def print_plan(systems: Sequence[Mapping[str, Any]], label: str) -> None:
    """The systems, before anything runs."""
    table = _table(label, "system", "epochs", "model", "nominal", "what")
    for row in systems:
        flops = row["nominal_flops_t"]
        nominal = "depends" if flops is None else format_flops(flops * 1e12).removesuffix("FLOP")
        table.add_row(row["name"], str(row["epochs"]), row["model"], nominal, f"{row['text']} ({row['source']})")
    _print(table)


def print_overview(systems: Sequence[Mapping[str, Any]], label: str) -> None:
    """One line per system."""
    columns = ("system", "seeds", "test", "100/class", "nominal", "executed", "joules", "net", "time", "J per point")
    table = _table(label, *columns)
    for row in systems:
        table.add_row(
            row["system"],
            str(row["seeds"]),
            _spread(row, "test_full"),
            _spread(row, "test_100"),
            _flops(row["nominal_flops_t"]),
            _flops(row["executed_flops_t"]),
            f"{format_energy(row['energy_j'])} ({row['energy_source']})",
            format_energy(row["net_j"]),
            format_duration(row["time_s"]),
            format_energy(row["j_per_point"]),
        )
    _print(table)
    for row in systems:
        for reason in row["throttled"]:
            print(f"slowed down: {row['system']}, {row['meter']}: {reason}")


def print_comparison(claims: Sequence[Mapping[str, Any]], label: str) -> None:
    """Claim, ours, difference."""
    table = _table(label, "system", "figure", "claim", "ours", "difference", "source")
    for row in claims:
        ours = _number(row["ours"])
        if row["seeds"] > 1 and row["std"] is not None:
            ours += f" ± {_number(row['std'])}"
        difference = "" if row["difference"] is None else f"{row['difference']:+.4g}"
        table.add_row(row["system"], row["metric"], _number(row["claim"]), ours, difference, row["source"])
    _print(table)


def print_edge(edge: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> None:
    """What each epoch of a fine-tune run took, then a mean epoch of each reference system."""
    table = _table("joules per epoch", "run", "epoch", "images", "joules", "net", "source", "J per 1000", "executed")
    for row in edge:
        table.add_row(f"edge, plan {row['plan']}", str(row["epoch"]), *_cost(row))
    for row in reference:
        table.add_row(f"reference, {row['system']}", "mean", *_cost(row))
    _print(table)


def _cost(row: Mapping[str, Any]) -> tuple[str, ...]:
    thousand_j = None if row["j_per_image"] is None else 1000 * row["j_per_image"]
    return (
        f"{row['images']:.0f}",
        format_energy(row["energy_j"]),
        format_energy(row["net_j"]),
        row["energy_source"],
        format_energy(thousand_j),
        _flops(row["executed_flops_t"]),
    )


_WORDS = {"system", "run", "model", "what", "figure", "source"}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right", overflow="fold")
    return table


def _print(table: Table) -> None:
    console = RichConsole(highlight=False, markup=False, emoji=False)
    # A pipe has no width: a table must not be folded into one that a terminal might have.
    console.print(table) if console.is_terminal else RichConsole(
        width=200, highlight=False, markup=False, emoji=False
    ).print(table)


def _spread(row: Mapping[str, Any], key: str) -> str:
    text = _percent(row[key])
    return text if row["seeds"] < 2 or row[f"{key}_std"] is None else f"{text} ± {100 * row[f'{key}_std']:.1f}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}%"


def _flops(tera: float | None) -> str:
    return format_flops(None if tera is None else tera * 1e12).removesuffix("FLOP")


def _number(value: float | None) -> str:
    return "unavailable" if value is None else f"{value:.4g}"
