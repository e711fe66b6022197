"""``edge-sel fleet``: rounds of many devices, as files that any transport carries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edge_sel.cli.common import (
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
from edge_sel.errors import EXIT_STOPPED_RESUMABLE, BadInputError, UsageError

if TYPE_CHECKING:
    from edge_sel.fleet.delta import Rule
    from edge_sel.pack.signatures import TrustedKeys


@click.group()
def group() -> None:
    """Learn from many devices in one round: `update` on each device, `merge` on a server. No image leaves a device."""


@group.command("update")
@click.argument("pack", type=GivenPath())
@data_option
@click.option("--out", required=True, type=GivenPath(dir_okay=False), help="File to write.")
@click.option("--key", type=GivenPath(dir_okay=False), help="Private key of this device, to sign it with.")
@kind_option
@plan_option
@click.option("--epochs", type=click.IntRange(1), help="Of a delta; by default those of the settings.")
@click.option("--residual", type=GivenPath(dir_okay=False),
              help="File for what a delta leaves out; it joins that of the next round.")  # fmt: skip
@epsilon_option
@privacy_delta_option
@config_option
@threads_option
@max_pixels_option
@profile_option
@require_signature_option
@json_option
def update_command(
    pack: Path, data: Path, out: Path, key: Path | None, kind: Literal["statistics", "delta"], plan: str,
    epochs: int | None, residual: Path | None, epsilon: float | None, privacy_delta: float, config: Path | None,
    threads: int, max_pixels: int, profile: str | None, require_signature: tuple[str, ...] | None, as_json: bool,
) -> None:  # fmt: skip
    """Write sums of the features of this device's images, or what training on them changes, for a server to merge.

    Images that are held out for validation here are not in it. Limits (battery, temperature, quiet hours, …) are
    settings, as of `finetune`: in --config or in the environment. Where one of them says no, nothing is written (75).
    """
    from edge_sel.api.fleet import take_part
    from edge_sel.files import write_durably
    from edge_sel.fleet.update import write_update
    from edge_sel.pack.reader import open_pack
    from edge_sel.pack.signatures import read_private_key

    opened = open_pack(pack, required_keys(require_signature))
    private = None if key is None else read_private_key(key)
    made = take_part(
        opened, data, kind=kind, plan=plan, epochs=epochs, residual=residual, config=config, environ=os.environ,
        privacy=None if epsilon is None else (epsilon, privacy_delta), profile=profile, threads=threads,
        max_pixels=max_pixels,
    )  # fmt: skip
    if made.declined is None:
        write_update(out, made.content, private)
        if residual is not None and made.residual is not None:
            write_durably(residual, made.residual)
    told = {"schema": 1, "update": None if made.declined else str(out), "declined": made.declined, "kind": kind,
            "images": made.images, "left_out": list(made.left_out), "bytes": len(made.content),
            "energy_j": made.energy_j, "energy_source": made.energy_source, "signed": private is not None}  # fmt: skip
    if as_json:
        echo_json(told)
    elif made.declined is not None:
        say(f"no update: {made.declined}")
    else:
        signed = "signed" if private is not None else "not signed"
        if made.left_out:
            say(f"not sent, as they have too few images: {', '.join(made.left_out)}", err=True)
        say(f"wrote {out}: {kind} of {made.images} images, {len(made.content) / 1e6:.1f} MB, {signed}")
    if made.declined is not None:
        raise SystemExit(EXIT_STOPPED_RESUMABLE)


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
    if as_json:
        echo_json({"schema": 1, **found.as_dict()})
        return
    if found.sums is not None:
        columns = len(found.sums.gram) - 1
        say(f"sums over {found.images} images in {columns} columns, {found.bytes / 1e6:.1f} MB")
    if found.delta is not None:
        told = f"{found.delta.sent} of {found.delta.size} numbers of the plan {found.delta.plan}"
        say(f"what training on {found.images} images changed: {told}, {found.bytes / 1e6:.1f} MB")
    say(f"device {found.device[:16]}, {'signed' if found.signed else 'its signature was not checked'}")
    if found.sums is not None:
        for name, count in zip(found.classes, found.sums.counts.tolist(), strict=True):
            say(f"  {name}: {count:.0f}")
    private = found.privacy
    say("no noise" if private is None else f"noise for ε = {private['epsilon']:g}, δ = {private['delta']:g}")


@group.command("merge")
@click.argument("pack", type=GivenPath())
@click.argument("updates", nargs=-1, required=True, type=GivenPath())
@click.option("--out", required=True, type=GivenPath(), help="The new pack.")
@click.option("--min-devices", default=1, show_default=True, type=click.IntRange(1), help="Fewer make no pack.")
@forget_option
@rule_option
@click.option("--velocity", type=GivenPath(dir_okay=False),
              help="File for what --rule momentum keeps from one round to the next.")  # fmt: skip
@pack_key_option
@_devices_option
@require_signature_option
@json_option
def merge_command(
    pack: Path, updates: tuple[Path, ...], out: Path, min_devices: int, forget: float, rule: Rule,
    velocity: Path | None, key: Path | None, devices: tuple[Path, ...], require_signature: tuple[str, ...] | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Merge UPDATES of devices into a new pack. One that cannot be used is told in one line; the others count."""
    from edge_sel.arrays import tensor_bytes
    from edge_sel.engines.ort import OrtEngine
    from edge_sel.files import write_durably
    from edge_sel.fleet.delta import read_velocity
    from edge_sel.fleet.merge import merge_updates, new_pack
    from edge_sel.fleet.update import open_updates
    from edge_sel.pack.reader import open_pack
    from edge_sel.pack.sign import sign_file
    from edge_sel.pack.signatures import read_private_key

    if os.path.lexists(out) and out.resolve() == pack.resolve():
        raise UsageError("--out is the pack itself", where=out, fix="name another file")
    opened = open_pack(pack, required_keys(require_signature))
    private = None if key is None else read_private_key(key)
    good, refused = open_updates(updates, opened, _keys(devices))
    if not as_json:
        for line in refused:
            say(line, err=True)
    if len(good) < min_devices:
        what = f"{len(good)} of {len(updates)} updates can be used, {min_devices} are needed"
        raise BadInputError(what, where=refused[0] if refused else None)
    before = read_velocity(velocity) if velocity is not None and velocity.exists() else None
    merged = merge_updates(opened, good, OrtEngine(), rule=rule, velocity=before)
    told = {"schema": 1, **merged.as_dict(), "refused": refused, "out": None,
            "energy_j": _sum([head.energy_j for head in good.heads()])}  # fmt: skip
    objection = merged.objection(forget)
    if objection is None:
        new_pack(opened, merged).save(out)
        if private is not None:
            sign_file(out, private)
        if velocity is not None and merged.velocity:
            write_durably(velocity, tensor_bytes(merged.velocity))
        told["out"] = str(out)
    if as_json:
        echo_json(told)
    else:
        say(f"{len(merged.devices)} devices, {merged.images} images; of {merged.judged} images of the server "
            f"{merged.right} are right, before {merged.right_before}")  # fmt: skip
        if merged.error is not None and merged.error_before is not None:
            say(f"squared error on the devices' images: {merged.error:.3f}, by the server alone "
                f"{merged.error_before:.3f}")  # fmt: skip
        for device in merged.left_out:
            say(f"left out: {device[:16]}, it contradicts the others")
        if objection is None:
            say(f"wrote {out}")
    if objection is not None:
        raise BadInputError(f"the merged model was not written: {objection}", where=out)


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _add_rounds_over_a_network() -> None:
    from edge_sel.cli import fleet_flower

    for name in ("serve", "join", "enrol", "simulate"):
        group.add_command(getattr(fleet_flower, f"{name}_command"))


_add_rounds_over_a_network()
