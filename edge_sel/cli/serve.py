"""``edge-sel serve``: a model as a service on this device."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import click

from edge_sel.cli.common import GivenPath, echo_json, json_option, require_signature_option, required_keys, say
from edge_sel.cli.watch import notify
from edge_sel.errors import UsageError

FOLLOW_S = 1.0
"""Between two looks for another model in service."""


@click.command()
@click.argument("model", required=False, type=GivenPath())
@click.option("--home", "home_folder", type=GivenPath(file_okay=False), help="Of a watcher: its model in service.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than this machine's "
              "own need the token that is printed (or EDGE_SEL_TOKEN).")  # fmt: skip
@click.option("--port", default=8766, show_default=True, type=click.IntRange(0, 65535), help="0 for any.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0, 1024), help="0 for all.")
@json_option
@require_signature_option
def command(
    model: Path | None, home_folder: Path | None, host: str, port: int, threads: int, as_json: bool,
    require_signature: tuple[str, ...] | None,
) -> None:  # fmt: skip
    """Answer requests: an image in, its class and probabilities out.

    POST /predict takes an image file, or JSON with the key image in base64. MODEL is a run, its model.onnx or a pack.
    With --home the model in service of a watcher answers, and is followed when another one takes its place.
    """
    from edge_sel.web.run import address_of, bind, require_web, serve_app, token_for

    if (model is None) == (home_folder is None):
        raise UsageError("one of MODEL and --home is needed")
    require_web("serve")
    from edge_sel.watch.home import open_home
    from edge_sel.web.serving import ModelService, serve_model_app

    trusted = required_keys(require_signature)
    home = None if home_folder is None else open_home(home_folder, trusted)
    stop = threading.Event()

    def tell(event: dict[str, Any]) -> None:
        if as_json:
            echo_json(event)
        elif event["event"] == "model":
            say(f"model {event['number']} answers now")
        else:
            say(event["why"], err=True)
        sys.stdout.flush()

    token = token_for(host, os.environ.get("EDGE_SEL_TOKEN"))
    service = ModelService(home, model, threads, trusted, tell)
    bound = bind(host, port)

    def follow() -> None:
        while not stop.wait(FOLLOW_S):
            service.follow()
            notify("WATCHDOG=1")

    def ready() -> None:
        notify("READY=1")
        address = address_of(bound, host, None if "EDGE_SEL_TOKEN" in os.environ else token)
        if as_json:
            echo_json({"event": "ready", "address": address})
        else:
            say(f"predict at {address}")
        sys.stdout.flush()

    threading.Thread(target=follow, name="follow", daemon=True).start()
    try:
        serve_app(serve_model_app(service, token), bound, ready)
    finally:
        stop.set()
        if home is not None:
            home.close()
