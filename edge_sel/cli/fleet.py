"""``edge-sel fleet``: rounds of many devices, as files that any transport carries."""

from __future__ import annotations

import os
import secrets
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
from edge_sel.errors import BadInputError, EdgeSelError, UsageError

if TYPE_CHECKING:
    from edge_sel.fleet.update import Update
    from edge_sel.pack.reader import Pack
    from edge_sel.pack.signatures import TrustedKeys

DELTA = 1e-5


@click.group()
def group() -> None:
    """Learn from many devices in one round: `update` on each device, `merge` on a server. No image leaves a device."""


@group.command("update")
@click.argument("pack", type=GivenPath())
@click.option("--data", required=True, type=GivenPath(), help="This device's images: DIR/<class>/*.jpg.")
@click.option("--out", required=True, type=GivenPath(dir_okay=False), help="File to write.")
@click.option("--key", type=GivenPath(dir_okay=False), help="Private key of this device, to sign it with.")
@click.option("--epsilon", type=FiniteRange(1e-3, 100), help="Add noise for this ε of differential privacy.")
@click.option("--delta", default=DELTA, show_default=True, type=FiniteRange(1e-12, 0.5))
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0, 1024), help="0 for all.")
@max_pixels_option
@profile_option
@require_signature_option
@json_option
def update_command(
    pack: Path, data: Path, out: Path, key: Path | None, epsilon: float | None, delta: float, threads: int,
    max_pixels: int, profile: str | None, require_signature: tuple[str, ...] | None, as_json: bool,
) -> None:  # fmt: skip
    """Write sums of the features of this device's images, for a server to merge."""
    import numpy as np

    from edge_sel.api.inputs import open_profile
    from edge_sel.data.folder import load_folder
    from edge_sel.engines.ort import OrtEngine
    from edge_sel.fleet.update import LEAST_OF_CLASS, features_of, make_update, require_sums, write_update
    from edge_sel.pack.reader import open_pack
    from edge_sel.pack.signatures import read_private_key
    from edge_sel.power.find import find_meter
    from edge_sel.power.recorder import EnergyRecorder

    opened = open_pack(pack, required_keys(require_signature))
    require_sums(opened)
    private = None if key is None else read_private_key(key)
    model, device = opened.manifest.model, open_profile(profile)
    meter, _ = find_meter(device, on_processor=True)
    with EnergyRecorder(meter, profile=device) as recorder:
        window = recorder.start_window("update")
        images = load_folder(data, model.image_size, classes=model.classes, new_classes="extend", max_pixels=max_pixels)
        features = features_of(opened, images, OrtEngine(threads))
        figure = recorder.end_window(window)
    content = make_update(
        opened, features, images.labels, images.classes, secrets.token_hex(16), energy=(figure.total_j, figure.source),
        privacy=None if epsilon is None else (epsilon, delta), rng=np.random.default_rng(secrets.randbits(128)),
    )  # fmt: skip
    write_update(out, content, private)
    counts = zip(images.classes, images.class_counts().tolist(), strict=True)
    few = [name for name, count in counts if 0 < count < LEAST_OF_CLASS]
    sent = int(sum(count for count in images.class_counts().tolist() if count >= LEAST_OF_CLASS))
    told = {"schema": 1, "update": str(out), "images": sent, "left_out": few,
            "bytes": len(content), "energy_j": figure.total_j,
            "energy_source": figure.source, "signed": private is not None}  # fmt: skip
    if as_json:
        echo_json(told)
    else:
        signed = "signed" if private is not None else "not signed"
        if few:
            say(f"not sent, as they have fewer than {LEAST_OF_CLASS} images: {', '.join(few)}", err=True)
        say(f"wrote {out}: sums of {sent} images, {len(content) / 1e6:.1f} MB, {signed}")


_devices_option = click.option(
    "--devices", multiple=True, type=GivenPath(dir_okay=False),
    help="Public key of a device; may be given again. Without any, updates need not be signed.",
)  # fmt: skip


def _keys(devices: tuple[Path, ...]) -> TrustedKeys | None:
    from edge_sel.pack.signatures import read_trusted_keys

    return read_trusted_keys(devices) if devices else None


@group.command("inspect")
@click.argument("pack", type=GivenPath())
@click.argument("update", type=GivenPath(dir_okay=False))
@_devices_option
@json_option
def inspect_command(pack: Path, update: Path, devices: tuple[Path, ...], as_json: bool) -> None:
    """What an update holds: what leaves a device."""
    from edge_sel.fleet.update import read_update
    from edge_sel.pack.reader import open_pack

    found = read_update(update, open_pack(pack), _keys(devices))
    counts = dict(zip(found.classes, found.sums.counts.tolist(), strict=True))
    told: dict[str, Any] = {
        "schema": 1, "images": found.images, "counts": counts, "columns": len(found.sums.gram) - 1,
        "bytes": found.bytes, "device": found.device, "signed": found.signed, "energy_j": found.energy_j,
        "energy_source": found.energy_source, "privacy": found.privacy,
    }  # fmt: skip
    if as_json:
        echo_json(told)
        return
    say(f"sums over {found.images} images in {len(found.sums.gram) - 1} columns, {found.bytes / 1e6:.1f} MB")
    say(f"device {found.device[:16]}, {'signed' if found.signed else 'its signature was not checked'}")
    for name, count in counts.items():
        say(f"  {name}: {count:.0f}")
    private = found.privacy
    say("no noise" if private is None else f"noise for ε = {private['epsilon']:g}, δ = {private['delta']:g}")


@group.command("merge")
@click.argument("pack", type=GivenPath())
@click.argument("updates", nargs=-1, required=True, type=GivenPath())
@click.option("--out", required=True, type=GivenPath(), help="The new pack.")
@click.option("--min-devices", default=1, show_default=True, type=click.IntRange(1), help="Fewer make no pack.")
@click.option("--forget", default=0.33, show_default=True, type=FiniteRange(0, 1),
              help="Share of what the server's model knew that may be lost.")  # fmt: skip
@click.option("--key", type=GivenPath(dir_okay=False), help="Private key to sign the new pack with.")
@_devices_option
@require_signature_option
@json_option
def merge_command(
    pack: Path, updates: tuple[Path, ...], out: Path, min_devices: int, forget: float, key: Path | None,
    devices: tuple[Path, ...], require_signature: tuple[str, ...] | None, as_json: bool,
) -> None:  # fmt: skip
    """Merge UPDATES of devices into a new pack. One that cannot be used is told in one line; the others count."""
    from edge_sel.fleet.merge import merge_updates, new_pack
    from edge_sel.pack.reader import open_pack
    from edge_sel.pack.sign import sign_file
    from edge_sel.pack.signatures import read_private_key

    if os.path.lexists(out) and out.resolve() == pack.resolve():
        raise UsageError("--out is the pack itself", where=out, fix="name another file")
    opened = open_pack(pack, required_keys(require_signature))
    private = None if key is None else read_private_key(key)
    good, refused = _read_all(updates, opened, _keys(devices))
    if not as_json:
        for line in refused:
            say(line, err=True)
    if len(good) < min_devices:
        what = f"{len(good)} of {len(updates)} updates can be used, {min_devices} are needed"
        raise BadInputError(what, where=refused[0] if refused else None)
    merged = merge_updates(opened, good)
    told = {"schema": 1, **merged.told(), "refused": refused, "out": None,
            "energy_j": _sum([update.energy_j for update in good])}  # fmt: skip
    kept = merged.right >= (1 - forget) * merged.right_before
    if kept:
        new_pack(opened, merged).save(out)
        if private is not None:
            sign_file(out, private)
        told["out"] = str(out)
    if as_json:
        echo_json(told)
    else:
        say(f"{len(merged.devices)} devices, {merged.images} images; of {merged.judged} images of the server "
            f"{merged.right} are right, before {merged.right_before}")  # fmt: skip
        for device in merged.left_out:
            say(f"left out: {device[:16]}, its labels contradict those of all others")
        say(f"wrote {out}" if kept else "no pack was written: it would forget too much (--forget allows more)")
    if not kept:
        raise BadInputError("the merged model forgot too much", where=out)


def _read_all(paths: tuple[Path, ...], pack: Pack, keys: TrustedKeys | None) -> tuple[list[Update], list[str]]:
    """Updates of different devices, and a line for each that cannot be used."""
    from edge_sel.fleet.update import read_update

    good: dict[str, Update] = {}
    refused = []
    for path in paths:
        try:
            update = read_update(path, pack, keys)
        except EdgeSelError as error:
            refused.append(str(error))
            continue
        if update.device in good:
            refused.append(f"a second update of device {update.device[:16]}: {path}")
        else:
            good[update.device] = update
    return [*good.values()], refused


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
