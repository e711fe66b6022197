"""``edge-sel runs``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_sel.cli.common import GivenPath, echo_json, json_option
from edge_sel.errors import escaped


@click.command()
@click.argument("folder", default=Path("runs"), type=GivenPath())
@json_option
def command(folder: Path, as_json: bool) -> None:
    """The runs in FOLDER [default: runs]: verdict, accuracy before and after, joules.

    shipped: the new model is better and replaced the original one; kept: the original one stays; stopped: by a limit or
    a signal; unfinished: it still runs, or was cut. The last two go on with --resume.
    """
    from edge_sel.edge.past_runs import past_runs

    runs = past_runs(folder)
    if as_json:
        echo_json({"schema": 1, "runs": [{**vars(run), "folder": str(run.folder)} for run in runs]})
        return
    if not runs:
        click.echo(f"no runs in {escaped(str(folder))}")
        return
    from rich.console import Console
    from rich.table import Table

    from edge_sel.units import format_duration, format_energy

    rows = []
    for run in runs:
        accuracy = ["–" if value is None else f"{100 * value:.1f}%" for value in (run.before, run.after)]
        energy = "–" if run.energy_j is None else format_energy(run.energy_j)
        time = "–" if run.time_s is None else format_duration(run.time_s)
        verdict = run.verdict + (f" ({run.why})" if run.why else "")
        name = escaped(run.folder.name or str(run.folder))
        rows.append((name, escaped(run.plan), escaped(verdict), *accuracy, energy, run.energy_source, time))
    console = Console(highlight=False, markup=False, emoji=False)
    shown = _that_fit(rows, console.width)
    table = Table(box=None, pad_edge=False)
    for place in shown:
        name = _COLUMNS[place]
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name != "run", overflow="fold")
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    console.print(table)


_COLUMNS = ("run", "plan", "verdict", "before", "after", "energy", "source", "time")
_LEFT = ("run", "plan", "verdict", "source")


def _that_fit(rows: list[tuple[str, ...]], width: int) -> list[int]:
    """Places of the columns to show: names of runs are whole as long as leaving out figures makes room for them."""
    from rich.cells import cell_len

    shown = list(range(len(_COLUMNS)))
    for given_up in ("", "source", "time", "plan", "energy"):
        shown = [place for place in shown if _COLUMNS[place] != given_up]
        wide = sum(max(cell_len(row[place]) for row in (*rows, _COLUMNS)) + 2 for place in shown) - 2
        if wide <= width:
            break
    return shown
