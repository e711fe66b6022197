"""``edge-sel label``: a page that asks a person what the kept images show, or labels from elsewhere."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_sel.cli.common import GivenPath, echo_json, json_option, require_signature_option, required_keys, say
from edge_sel.cli.watch import notify

if TYPE_CHECKING:
    from edge_sel.watch.home import Home


@click.command()
@click.option("--home", "home_folder", required=True, type=GivenPath(file_okay=False), help="Folder of the watcher.")
@click.option("--import", "table", type=GivenPath(dir_okay=False), help="CSV with the columns path and class.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than this machine's "
              "own need the token that is printed (or EDGE_SEL_TOKEN).")  # fmt: skip
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 for any.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0, 1024), help="0 for all.")
@json_option
@require_signature_option
def command(
    home_folder: Path, table: Path | None, host: str, port: int, threads: int, as_json: bool,
    require_signature: tuple[str, ...] | None,
) -> None:  # fmt: skip
    """Label the images that `edge-sel watch` has kept: one key or tap each, the most instructive first.

    Each label changes the model before the next image is shown. The better model goes into service.
    """
    from edge_sel.watch.home import open_home

    if table is None:
        from edge_sel.web.run import require_web

        require_web("label")
    home = open_home(home_folder, required_keys(require_signature))
    try:
        if table is not None:
            _import(home, table, threads, as_json)
        else:
            _serve(home, host, port, threads, as_json)
    finally:
        home.close()


def _import(home: Home, table: Path, threads: int, as_json: bool) -> None:
    from edge_sel.engines.ort import OrtEngine
    from edge_sel.watch.labelling import collect_moved, import_labels
    from edge_sel.watch.learner import Learner

    learner = Learner(home, OrtEngine(threads))
    moved = collect_moved(home, learner.observer, time.time)
    found = import_labels(home, table, time.time)
    candidate = learner.candidate()
    look = None if candidate is None else learner.decide(candidate)
    summary: dict[str, Any] = {**found._asdict(), "moved": moved.labelled, "look": look and look._asdict()}
    if as_json:
        echo_json(summary)
        return
    left_out = f"{found.unknown} of images that are not there, {found.refused} with names no class has"
    say(f"{found.labelled} labels, {left_out}")
    if look is not None:
        after = "" if look.shipped is None else f"; model {look.shipped} is in service"
        say(f"look {look.number}: {look.why}{after}")


def _serve(home: Home, host: str, port: int, threads: int, as_json: bool) -> None:
    import numpy as np

    from edge_sel.engines.ort import OrtEngine
    from edge_sel.watch.learner import Learner
    from edge_sel.watch.teacher import Teacher
    from edge_sel.web.labelling import Desk, label_app
    from edge_sel.web.run import address_of, bind, serve_app, token_for

    token = token_for(host, os.environ.get("EDGE_SEL_TOKEN"))
    bound = bind(host, port)
    learner = Learner(home, OrtEngine(threads))
    teacher = Teacher(learner, time.monotonic, np.random.default_rng(0))

    def tell(event: dict[str, Any]) -> None:
        if as_json:
            echo_json(event)
        elif event["event"] == "look":
            after = "" if event["shipped"] is None else f"; model {event['shipped']} is in service"
            say(f"look {event['number']}: {event['why']}{after}")
        elif event["event"] == "cannot_learn":
            say(event["why"], err=True)
        sys.stdout.flush()

    desk = Desk(learner, teacher, time.time, tell)
    desk.start()

    def ready() -> None:
        notify("READY=1")
        address = address_of(bound, host, None if "EDGE_SEL_TOKEN" in os.environ else token)
        if as_json:
            echo_json({"event": "ready", "address": address})
        else:
            say(f"label at {address}")
        sys.stdout.flush()

    try:
        serve_app(label_app(desk, token), bound, ready)
    finally:
        desk.stop()
