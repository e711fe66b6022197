"""``edge-sel watch`` and ``edge-sel rollback``: classify what a camera brings, and keep what teaches most."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_sel.cli.common import (
    FiniteRange,
    GivenPath,
    echo_json,
    json_option,
    max_pixels_option,
    profile_option,
    require_signature_option,
    required_keys,
    say,
)
from edge_sel.errors import EXIT_STOPPED_RESUMABLE, UsageError
from edge_sel.files import csv_line

if TYPE_CHECKING:
    from edge_sel.watch.home import Home

STDIN = "-"
COLUMNS = ("number", "source", "seen", "class", "probability", "novelty", "model", "file", "label")


@click.command()
@click.argument("folder", required=False, type=GivenPath(allow_dash=True))
@click.option("--home", "home_folder", required=True, type=GivenPath(file_okay=False), help="Folder of the watcher.")
@click.option("--model", type=GivenPath(), help="A pack, or the folder of a run; for a new home.")
@click.option(
    "--rate", default=0.05, show_default=True, type=FiniteRange(0, 1, min_open=True),
    help="Target share of images that are kept for a human.",
)  # fmt: skip
@click.option("--keep", default=500, show_default=True, type=click.IntRange(1, 100_000),
              help="Images without a label, at most; the least new go first.")  # fmt: skip
@click.option("--keep-mb", default=500.0, show_default=True, type=FiniteRange(1), help="Their size, at most.")
@click.option("--once", is_flag=True, help="Look at what is in FOLDER now, then leave.")
@click.option("--no-learning", is_flag=True, help="Do not learn from labels here.")
@click.option("--finetune", is_flag=True, help="Start a full session where labels and the pack's gains promise enough.")
@click.option("--config", type=GivenPath(dir_okay=False), help="TOML file with limits, such as quiet_hours.")
@click.option("--metrics-file", "metrics", type=GivenPath(dir_okay=False), help="OpenMetrics text, kept up to date.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0, 1024), help="0 for all.")
@click.option("--csv", "as_csv", is_flag=True, help="Print what was seen so far, as a table, and leave.")
@json_option
@max_pixels_option
@profile_option
@require_signature_option
def command(
    folder: Path | None, home_folder: Path, model: Path | None, as_csv: bool, as_json: bool,
    require_signature: tuple[str, ...] | None, **options: Any,
) -> int:  # fmt: skip
    """Classify every new image in FOLDER (and below), and keep the new ones for a human.

    FOLDER may be - for JPEG frames on stdin. --home holds the pack, the records, the kept images and the models.
    `edge-sel label` asks a person about them; `edge-sel serve` serves the model.
    """
    from edge_sel.watch.home import make_home, open_home

    trusted = required_keys(require_signature)
    if as_csv:
        _print_lines(open_home(home_folder, trusted))
        return 0
    if folder is None:
        raise UsageError("no folder is named", fix="edge-sel watch FOLDER --home DIR")
    if str(folder) != STDIN and not folder.is_dir():
        raise UsageError("no such folder", where=folder)
    if model is not None:
        make_home(home_folder, model, trusted)
    home = open_home(home_folder, trusted)
    try:
        return _watch(folder, home, as_json, options)
    finally:
        home.close()


def _watch(folder: Path, home: Home, as_json: bool, options: dict[str, Any]) -> int:
    from edge_sel.api.watching import watch_home
    from edge_sel.runs.stop_signal import StopSignal

    def tell(event: dict[str, Any]) -> None:
        if as_json:
            echo_json(event)
        elif (line := _event_line(event)) is not None:
            say(line, err=event["event"] in ("unreadable", "cannot_write", "restored", "polling"))
        if event["event"] == "started":
            notify("READY=1")
        notify("WATCHDOG=1")

    with StopSignal() as stop:
        why = watch_home(
            home, sys.stdin.buffer if str(folder) == STDIN else folder, tell=tell, should_stop=stop,
            environ=os.environ, alive=lambda: notify("WATCHDOG=1"), **options,
        )  # fmt: skip
    notify("STOPPING=1")
    return 0 if why in ("done", "signal") else EXIT_STOPPED_RESUMABLE


def _event_line(event: dict[str, Any]) -> str | None:
    """An event in words; None for one that says nothing to people."""
    kind = event["event"]
    if kind == "started":
        return f"watching {event['source']} with model {event['model']}: {event['kept']} images kept"
    if kind == "polling":
        return f"the folder is looked through from time to time: {event['why']}"
    if kind == "restored":
        return f"{event['why']}: the records were made anew from the folders"
    if kind == "unreadable":
        return f"not an image: {event['source']}: {event['why']}"
    if kind == "cannot_write":
        return f"cannot write: {event['why']}; what is new waits"
    if kind == "look":
        after = "" if event["shipped"] is None else f"; model {event['shipped']} is in service"
        return f"look {event['number']}: {event['why']}{after}"
    if kind == "drift" and event["seen"]:
        return f"the images have changed: {100 * event['novel']:.0f} % are new (p = {event['p_novelty']:.1g})"
    if kind == "finished":
        counts = ", ".join(f"{value} {name}" for name, value in event["counters"].items() if name != "millijoules")
        return f"{event['why']}: {counts or 'nothing was seen'}"
    return None


def notify(text: str) -> None:
    """Tell systemd, if it has started this process; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)  # nobody may read it
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.sendall(text.encode())


def _print_lines(home: Home) -> None:
    try:
        click.echo(csv_line(COLUMNS))
        for number, source, seen_s, name, probability, novelty, model, file, label in home.records.lines():
            seen = _time(seen_s)
            click.echo(csv_line([
                number, source, seen, name, _number(probability), _number(novelty), model, file or "", label or "",
            ]))  # fmt: skip
    finally:
        home.close()


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


@click.command()
@click.option("--home", "home_folder", required=True, type=GivenPath(file_okay=False), help="Folder of the watcher.")
def rollback_command(home_folder: Path) -> None:
    """Put the model that was in service before into service again."""
    from edge_sel.runs.lock import hold_lock
    from edge_sel.watch.home import open_home
    from edge_sel.watch.learner import LOCK

    home = open_home(home_folder)
    try:
        with hold_lock(home_folder / LOCK, wait=True):
            was, now = home.roll_back()
        home.records.note("rolled_back", f"{was} {now} {time.time():.0f}")
        say(f"model {now} is in service again, in place of model {was}")
    finally:
        home.close()
