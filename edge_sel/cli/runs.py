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

    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("plan", "verdict", "before", "after", "energy", "source", "time"):
        table.add_column(name, justify="left" if name in ("plan", "verdict", "source") else "right", no_wrap=True)
    for run in runs:
        accuracy = ["–" if value is None else f"{100 * value:.1f}%" for value in (run.before, run.after)]
        energy = "–" if run.energy_j is None else format_energy(run.energy_j)
        time = "–" if run.time_s is None else format_duration(run.time_s)
        verdict = run.verdict + (f" ({run.why})" if run.why else "")
        name = escaped(run.folder.name or str(run.folder))
        table.add_row(name, escaped(run.plan), escaped(verdict), *accuracy, energy, run.energy_source, time)
    Console(highlight=False, markup=False, emoji=False).print(table)
