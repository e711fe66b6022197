"""``edge-sel finetune``."""

from __future__ import annotations

import os
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_sel.cli.common import (
    GivenPath,
    check_images,
    echo_json,
    json_option,
    load_images,
    open_pack_or_builtin,
    open_profile,
    prepare_out,
    profile_option,
    settings_options,
    trusted_keys,
)
from edge_sel.errors import EXIT_STOPPED_RESUMABLE, UsageError

if TYPE_CHECKING:  # these take long to import, and `--help` does without them
    from edge_sel.config.settings import Resolved
    from edge_sel.edge.host import Listener
    from edge_sel.pack.reader import Pack


@click.command()
@click.argument("pack", required=False, type=GivenPath())
@click.option("--data", type=GivenPath(), help="This device's labelled images: DIR/<class>/*.jpg.")
@click.option("--test", type=GivenPath(), help="Images that only the before/after figures look at.")
@click.option("--expert", type=GivenPath(), help="Begin with these weights of `edge-sel expert`.")
@click.option("--out", type=GivenPath(), help="Folder of this run. [default: runs/DATE-TIME]")
@click.option("--resume", is_flag=True, help="Continue the run in --out if there is one; start it otherwise.")
@profile_option
@click.option("--config", type=GivenPath(), help="TOML file with any of the settings below.")
@click.option(
    "--metrics-file",
    "metrics",
    type=GivenPath(dir_okay=False),
    help="Keep the live run's figures in this OpenMetrics text file.",
)
@json_option
@settings_options
def command(
    pack: Path | None, data: Path | None, test: Path | None, expert: Path | None, out: Path | None, resume: bool,
    profile: str | None, config: Path | None, metrics: Path | None, as_json: bool, **flags: Any,
) -> int:  # fmt: skip
    """Fine-tune PACK on this device's own labelled images.

    With no argument: a small built-in pack on handwritten digits, re-lit as a field camera would see them.
    """
    from edge_sel.cli.show import Console, print_result
    from edge_sel.cli.signals import StopSignal
    from edge_sel.config.settings import resolve
    from edge_sel.edge.free_memory import limited_memory

    if pack is not None and data is None:
        raise UsageError("--data is missing", fix="name the folder with this device's images, DIR/<class>/*.jpg")
    if resume and out is None:
        raise UsageError("--resume needs --out", fix="name the folder of the run to continue")
    device = open_profile(profile)
    layers = partial(resolve, profile=device, toml_file=config, environ=os.environ, flags=flags)
    untuned = layers()  # mistakes are told before anything is opened
    trusted = trusted_keys(untuned.settings.require_signature)
    folder = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    stop = StopSignal()
    with Console(quiet=as_json) as console, limited_memory():
        from edge_sel.edge.hold import hold_folder
        from edge_sel.edge.open import open_session  # takes long, and a signal may come meanwhile
        from edge_sel.engines.by_name import choose_engine
        from edge_sel.pack.expert import read_expert

        opened = open_pack_or_builtin(pack, trusted)
        trained = None if expert is None else read_expert(expert, opened, trusted)
        check_images(opened, data, test)
        with hold_folder(folder, prepare_out) as notices:
            resolved = layers(tuned=find_tuning(untuned, opened, device.name, folder if resume else None, console))
            settings = resolved.settings
            with open_session(
                opened,
                resolved,
                device,
                folder,
                read_images=lambda: load_images(opened, data, test, settings),
                make_engine=partial(
                    choose_engine,
                    settings.engine,
                    settings.threads,
                    spinning=settings.spinning,
                    device=settings.device,
                    note=lambda why: notices.append(("device", {"device": "cpu", "why": why})),
                ),
                should_stop=stop,
                listener=console,
                expert=trained,
                metrics=metrics,
                resume=resume,
                warn=partial(click.echo, err=True),
                notices=notices,
            ) as session:
                result = session.run()
    if as_json:
        echo_json(result)
    else:
        print_result(result)
    return EXIT_STOPPED_RESUMABLE if result["stopped"] != "done" else 0


def find_tuning(untuned: Resolved, pack: Pack, profile: str, resumed: Path | None, tell: Listener) -> dict[str, Any]:
    """The settings that `edge-sel tune` found to take the fewest joules, of those that the user did not give.

    A run that is resumed keeps what it began with.
    """
    from edge_sel.edge.outputs.session_folder import tuned_at_start
    from edge_sel.power.processors import usable_cores
    from edge_sel.tuning.choose import machine, read_tuning, tuned_settings, tuning_file

    tuned = None if resumed is None else tuned_at_start(resumed)
    path = tuning_file(pack.digest, "ort", os.environ)
    if tuned is None and untuned.settings.engine in ("auto", "ort") and path is not None:
        costs, why = read_tuning(path, machine(profile, usable_cores()))
        tuned = {} if costs is None else tuned_settings(untuned, costs, untuned.settings.plan)
        if why:
            tell({"event": "tuning_ignored", "why": why})
    if tuned:
        tell({"event": "tuned", "settings": tuned})
    return tuned or {}
