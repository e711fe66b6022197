"""``edge-sel report``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from edge_sel.cli.common import GivenPath, echo_json, json_option
from edge_sel.errors import UsageError, escaped


@click.command()
@click.argument("runs", nargs=-1, type=GivenPath())
@click.option("--reference", type=GivenPath(), help="A folder of `edge-sel reference`, shown beside the runs.")
@click.option(
    "--out", default=Path("report.html"), show_default=True, type=GivenPath(dir_okay=False),
    help="File to write; an earlier report there is replaced.",
)  # fmt: skip
@click.option("--no-images", is_flag=True, help="List the hardest images by path only, without pictures.")
@json_option
def command(runs: tuple[Path, ...], reference: Path | None, out: Path, no_images: bool, as_json: bool) -> None:
    """Write one HTML page about RUNS, which opens offline.

    RUNS are folders of `edge-sel finetune`, or folders that hold such folders.

    Needs edge-sel[report].
    """
    from edge_sel.report.page import write_report

    if not runs and reference is None:
        raise UsageError("no run is named", fix="name the --out folder of a run, or --reference DIR")
    size = write_report(out, runs, reference=reference, images=not no_images, now=datetime.now())
    if as_json:
        echo_json({"schema": 1, "out": str(out), "bytes": size})
    else:
        click.echo(f"{escaped(str(out))} ({size / 1e6:.2f} MB)")
