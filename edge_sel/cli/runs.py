"""``edge-sel runs`` and ``edge-sel report``: finished and unfinished runs, as a table or as a page."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from edge_sel.cli.common import GivenPath, echo_json, json_option, say
from edge_sel.errors import UsageError, on_one_line


@click.command()
@click.argument("folder", default=Path("runs"), type=GivenPath())
@json_option
def command(folder: Path, as_json: bool) -> None:
    """The runs in FOLDER [default: runs]: verdict, accuracy before and after, joules.

    shipped: the new model is better and replaced the original one; kept: the original one stays; stopped: by a limit or
    a signal; unfinished: it still runs, or was cut. The last two go on with --resume.
    """
    from edge_sel.edge.outputs.earlier import past_runs

    runs = past_runs(folder)
    if as_json:
        echo_json({"schema": 1, "runs": [{**vars(run), "folder": str(run.folder)} for run in runs]})
        return
    if not runs:
        say(f"no runs in {folder}")
        return
    from edge_sel.cli.show import plain_console, plain_table
    from edge_sel.units import format_duration, format_energy

    rows = []
    for run in runs:
        accuracy = ["–" if value is None else f"{100 * value:.1f}%" for value in (run.before, run.after)]
        energy = "–" if run.energy_j is None else format_energy(run.energy_j)
        time = "–" if run.time_s is None else format_duration(run.time_s)
        verdict = run.verdict + (f" ({run.why})" if run.why and run.verdict != "damaged" else "")
        name = run.folder.name or str(run.folder)
        rows.append((name, run.plan, verdict, *accuracy, energy, run.energy_source, time))
    console = plain_console()
    shown = _that_fit(rows, console.width)
    cells = ([row[place] for place in shown] for row in rows)
    console.print(plain_table("", [_COLUMNS[place] for place in shown], cells, left=_LEFT, folded={"run"}))
    for run in runs:
        if run.verdict == "damaged":
            say(on_one_line(f"{run.folder.name or run.folder}: {run.why}"))


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


@click.command()
@click.argument("runs", nargs=-1, type=GivenPath())
@click.option("--reference", type=GivenPath(), help="A folder of `edge-sel reference`, shown beside the runs.")
@click.option(
    "--out", default=Path("report.html"), show_default=True, type=GivenPath(dir_okay=False),
    help="File to write; an earlier report there is replaced.",
)  # fmt: skip
@click.option(
    "--data",
    type=GivenPath(file_okay=False),
    help="Folder of the images that the runs were given: the hardest are shown. No other image is opened.",
)
@json_option
def report_command(runs: tuple[Path, ...], reference: Path | None, out: Path, data: Path | None, as_json: bool) -> None:
    """Write one HTML page about RUNS, which opens offline.

    RUNS are folders of `edge-sel finetune`, or folders that hold such folders.

    Needs edge-sel[report].
    """
    from edge_sel.report.page import write_report

    if not runs and reference is None:
        raise UsageError("no run is named", fix="name the --out folder of a run, or --reference DIR")
    size = write_report(out, runs, reference=reference, images=data, now=datetime.now())
    if as_json:
        echo_json({"schema": 1, "out": str(out), "bytes": size})
    else:
        say(f"{out} ({size / 1e6:.2f} MB)")
