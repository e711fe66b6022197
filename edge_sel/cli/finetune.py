"""``edge-sel finetune``."""

from __future__ import annotations

import os
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from edge_sel.cli.common import GivenPath, echo_json, json_option, profile_option, say, settings_options
from edge_sel.errors import EXIT_STOPPED_RESUMABLE, UsageError


@click.command()
@click.argument("pack", required=False, type=GivenPath())
@click.option("--data", type=GivenPath(), help="This device's labelled images: DIR/<class>/*.jpg.")
@click.option("--test", type=GivenPath(), help="Labelled test images, used only for the accuracy before and after.")
@click.option("--expert", type=GivenPath(), help="Start from these weights, made by `edge-sel expert`.")
@click.option(
    "--from",
    "weights",
    type=GivenPath(),
    help="Start from the model of an earlier run of this pack: its folder, or its weights.safetensors.",
)
@click.option("--out", type=GivenPath(), help="Folder of this run. [default: runs/DATE-TIME]")
@click.option("--resume", is_flag=True, help="Continue the run in --out if there is one; start it otherwise.")
@profile_option
@click.option("--config", type=GivenPath(), help="TOML file with any of the settings below.")
@click.option(
    "--metrics-file",
    "metrics",
    type=GivenPath(dir_okay=False),
    help="Write the current figures to this OpenMetrics text file during the run.",
)
@click.option("--report", is_flag=True, help="Write report.html into the run's folder (needs edge-sel[report]).")
@json_option
@settings_options
def command(
    pack: Path | None, data: Path | None, test: Path | None, expert: Path | None, weights: Path | None,
    out: Path | None, resume: bool, profile: str | None, config: Path | None, metrics: Path | None, report: bool,
    as_json: bool, **flags: Any,
) -> int:  # fmt: skip
    """Fine-tune PACK on this device's own labelled images.

    With no argument: a small built-in pack on handwritten digits, re-lit as a field camera would see them.
    """
    from edge_sel.api.inputs import open_profile
    from edge_sel.cli.show import Console, print_result
    from edge_sel.config.settings import resolve
    from edge_sel.runs.stop_signal import StopSignal

    if pack is not None and data is None:
        raise UsageError("--data is missing", fix="name the folder with this device's images, DIR/<class>/*.jpg")
    if resume and out is None:
        raise UsageError("--resume needs --out", fix="name the folder of the run to continue")
    device = open_profile(profile)
    given = {name: value for name, value in flags.items() if value is not None}
    resolve(profile=device, toml_file=config, environ=os.environ, flags=given)  # mistakes are told before all else
    folder = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    page = folder / "report.html"
    if report:
        from edge_sel.report.charts import require_matplotlib
        from edge_sel.report.page import refuse_other, write_report

        require_matplotlib()  # before hours of work
        refuse_other(page)
    stop = StopSignal()
    with Console(quiet=as_json) as console:
        from edge_sel.api.round import finetune  # takes long, and a signal may come meanwhile

        run = finetune(
            pack, data, out=folder, test=test, expert=expert, weights=weights, profile=device, config=config,
            environ=os.environ, metrics=metrics, resume=resume, listener=console, should_stop=stop,
            warn=partial(say, err=True), **given,
        )  # fmt: skip
    if report:
        write_report(page, [folder], images=data, now=datetime.now())
    if as_json:
        echo_json(run.summary)
    else:
        print_result(run.summary, page if report else None)
    return 0 if run.done else EXIT_STOPPED_RESUMABLE
