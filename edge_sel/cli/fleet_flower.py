"""``edge-sel fleet serve``, ``join``, ``enrol`` and ``simulate``: rounds over a network (needs edge-sel[fleet])."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
from edge_sel.cli.fleet_options import (
    config_option,
    data_option,
    epsilon_option,
    forget_option,
    kind_option,
    pack_key_option,
    plan_option,
    privacy_delta_option,
    rule_option,
    threads_option,
)
from edge_sel.errors import EXIT_STOPPED_RESUMABLE, UsageError

if TYPE_CHECKING:
    from edge_sel.fleet.delta import Rule
    from edge_sel.flower.server_app import Ended

_rounds_option = click.option("--rounds", default=1, show_default=True, type=click.IntRange(1), help="Then it ends.")
_min_option = click.option("--min-devices", default=2, show_default=True, type=click.IntRange(1),
                           help="With fewer a round does not end.")  # fmt: skip
_timeout_option = click.option("--round-timeout", default=600.0, show_default=True, type=FiniteRange(5, 604800),
                               help="Seconds to wait for devices, twice a round.")  # fmt: skip


@click.command("enrol")
@click.argument("key", type=GivenPath(dir_okay=False))
@click.argument("card", type=GivenPath(dir_okay=False))
def enrol_command(key: Path, card: Path) -> None:
    """Write the file that makes this device known to a server: public keys only. KEY is of `pack keygen`."""
    from edge_sel.files import write_durably
    from edge_sel.flower.keys import CARD_SUFFIX, card_of
    from edge_sel.pack.signatures import fingerprint, read_private_key

    if not card.name.endswith(CARD_SUFFIX):
        raise UsageError(f"the name does not end with {CARD_SUFFIX}", where=card)
    private = read_private_key(key)
    write_durably(card, card_of(private))
    say(f"wrote {card}: copy it to the server; device {fingerprint(private.public_key())[:12]}")


@click.command("serve")
@click.argument("pack", type=GivenPath())
@click.option("--home", required=True, type=GivenPath(file_okay=False),
              help="The server's folder: rounds, certificates, database. Made where it is missing.")  # fmt: skip
@click.option("--address", required=True, metavar="HOST:PORT", help="Where devices reach this server.")
@click.option("--listen", default="0.0.0.0", show_default=True, help="Address of this machine to listen on.")
@click.option("--devices", required=True, multiple=True, type=GivenPath(),
              help="Folder with files of `fleet enrol`, or one of them; may be given again.")  # fmt: skip
@_rounds_option
@_timeout_option
@_min_option
@kind_option
@plan_option
@rule_option
@forget_option
@pack_key_option
@threads_option
@require_signature_option
@json_option
def serve_command(
    pack: Path, home: Path, address: str, listen: str, devices: tuple[Path, ...], rounds: int, round_timeout: float,
    min_devices: int, kind: Literal["statistics", "delta"], plan: str, rule: Rule, forget: float, key: Path | None,
    threads: int, require_signature: tuple[str, ...] | None, as_json: bool,
) -> None:  # fmt: skip
    """Hold rounds with devices over a network, and publish what is better. A killed server goes on where it was.

    With too few devices the round stays open, and the status is 75: start it again.
    """
    from edge_sel.flower.keys import read_cards
    from edge_sel.flower.round import RoundOptions, TooFewDevicesError
    from edge_sel.flower.server_app import serve
    from edge_sel.pack.reader import open_pack
    from edge_sel.pack.signatures import read_private_key

    options = RoundOptions(
        kind, plan, rule, timeout_s=round_timeout, min_devices=min_devices, forget=forget, threads=threads, alive=_alive
    )
    try:
        ended = serve(
            open_pack(pack, required_keys(require_signature)), home, address, read_cards(devices), rounds=rounds,
            options=options, listen=listen, key=None if key is None else read_private_key(key), tell=_err,
            ready=_ready,
        )  # fmt: skip
    except TooFewDevicesError as error:
        say(f"{error}; the round stays open", err=True)
        raise SystemExit(EXIT_STOPPED_RESUMABLE) from None
    _print_rounds(ended, as_json)


@click.command("join")
@click.argument("server", metavar="HOST:PORT")
@click.argument("pack", type=GivenPath())
@data_option
@click.option("--key", required=True, type=GivenPath(dir_okay=False), help="Private key of this device.")
@click.option("--ca", required=True, type=GivenPath(dir_okay=False), help="The server's ca.pem.")
@click.option("--home", required=True, type=GivenPath(file_okay=False), help="Folder for what is kept between rounds.")
@epsilon_option
@privacy_delta_option
@click.option(
    "--deltas", is_flag=True, help="Send deltas too, if the server asks: these can tell much of single images."
)
@click.option("--most-rounds", type=click.IntRange(1), help="Take part in so many, then decline: ε adds up.")
@config_option
@threads_option
@max_pixels_option
@profile_option
@require_signature_option
def join_command(
    server: str, pack: Path, data: Path, key: Path, ca: Path, home: Path, epsilon: float | None, privacy_delta: float,
    deltas: bool, most_rounds: int | None, config: Path | None, threads: int, max_pixels: int, profile: str | None,
    require_signature: tuple[str, ...] | None,
) -> None:  # fmt: skip
    """Take part in the rounds of a server until SIGTERM. No image leaves the device, and no code of the server runs.

    Limits (battery, temperature, quiet hours, …) are settings, as of `finetune`: where one says no, it declines.
    """
    from edge_sel.flower.client_app import Device, join
    from edge_sel.flower.processes import split_address
    from edge_sel.pack.signatures import read_private_key

    split_address(server)
    device = Device(
        pack, data, home, read_private_key(key), required_keys(require_signature),
        None if epsilon is None else (epsilon, privacy_delta), config, profile, threads, max_pixels, dict(os.environ),
        deltas, most_rounds,
    )  # fmt: skip
    _ready()
    join(device, server, ca, _err, _alive)


@click.command("simulate")
@click.argument("pack", type=GivenPath())
@click.option("--data", required=True, type=GivenPath(), help="Images of all devices: DIR/<class>/*.jpg.")
@click.option("--devices", default=20, show_default=True, type=click.IntRange(2, 200), help="How many.")
@click.option("--skew", default=0.5, show_default=True, type=FiniteRange(0.05, 1000),
              help="Small: each device has few classes. Large: all have the same.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the devices' parts.")
@click.option("--home", required=True, type=GivenPath(), help="Folder to make for everything.")
@_rounds_option
@_timeout_option
@click.option("--min-devices", type=click.IntRange(1), help="With fewer a round does not end.  [default: half]")
@kind_option
@plan_option
@rule_option
@forget_option
@epsilon_option
@privacy_delta_option
@threads_option
@max_pixels_option
@json_option
def simulate_command(
    pack: Path, data: Path, devices: int, skew: float, seed: int, home: Path, rounds: int, round_timeout: float,
    min_devices: int | None, kind: Literal["statistics", "delta"], plan: str, rule: Rule, forget: float,
    epsilon: float | None, privacy_delta: float, threads: int, max_pixels: int, as_json: bool,
) -> None:  # fmt: skip
    """Hold rounds of many devices on this machine: a SuperLink, a SuperNode for each, and their parts of DATA."""
    from edge_sel.data.folder import load_folder
    from edge_sel.flower.round import RoundOptions
    from edge_sel.flower.simulate import simulate
    from edge_sel.pack.reader import open_pack

    if os.path.lexists(home):
        raise UsageError("the folder is there already", where=home, fix="name a new one")
    opened = open_pack(pack)
    model = opened.manifest.model
    images = load_folder(data, model.image_size, classes=model.classes, new_classes="extend", max_pixels=max_pixels)
    enough = max(devices // 2, 1) if min_devices is None else min_devices
    options = RoundOptions(
        kind, plan, rule, timeout_s=round_timeout, min_devices=enough, forget=forget, threads=threads
    )
    privacy = None if epsilon is None else (epsilon, privacy_delta)
    ended = simulate(opened, images, home, devices=devices, skew=skew, seed=seed, rounds=rounds, options=options,
                     privacy=privacy, tell=_err)  # fmt: skip
    _print_rounds(ended, as_json)


def _ready() -> None:
    from edge_sel.cli.watch import notify

    notify("READY=1")


def _alive() -> None:
    from edge_sel.cli.watch import notify

    notify("WATCHDOG=1")


def _err(line: str) -> None:
    say(line, err=True)


def _print_rounds(ended: list[Ended], as_json: bool) -> None:
    if as_json:
        echo_json({"schema": 1, "rounds": [each._asdict() for each in ended]})
        return
    for each in ended:
        made = f", wrote {each.published}" if each.published else ""
        say(f"round {each.round} {each.state}: {each.updates} updates, {len(each.declined)} declined, judged by "
            f"{each.judged}, {each.seconds:.0f} s, {each.bytes_received / 1e6:.1f} MB{made}")  # fmt: skip
