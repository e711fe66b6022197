"""``edge-sel pack``: ``inspect``, ``verify``, ``keygen`` and ``sign``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_sel.cli.common import GivenPath, echo_json, require_signature_option, required_keys, say
from edge_sel.errors import UsageError

if TYPE_CHECKING:  # these take long to import, and `--help` does without them
    from edge_sel.pack.signatures import Signers


@click.group()
def command() -> None:
    """Inspect, verify or sign a pack."""


@command.command()
@click.argument("pack", type=GivenPath())
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as one JSON object on stdout.")
def inspect(pack: Path, as_json: bool) -> None:
    """What PACK holds: model, classes, plans and what each costs."""
    from edge_sel.pack.reader import open_pack

    opened = open_pack(pack)
    manifest = opened.manifest
    if as_json:
        signers = {"pack": opened.signers.to_json() if opened.signers else None}
        echo_json({"schema": 1, "pack": str(pack), "signers": signers, **asdict(manifest)})
        return
    model, calibration = manifest.model, manifest.calibration
    height, width = model.image_size
    say(f"{model.name}: {model.parameters:,} parameters, {width}×{height} pixels, optimizer {manifest.optimizer}")
    say(f"classes ({len(model.classes)}): {', '.join(model.classes)}")
    say(
        f"calibrated on {calibration.images} images: accuracy {100 * calibration.accuracy:.1f} %, "
        f"γ {calibration.gamma:.2e} (p{calibration.gamma_percentile:g})"
    )
    for plan in manifest.plans.values():
        say(
            f"  {plan.name:10} {len(plan.trainable):3} tensors trained, "
            f"{plan.flops_train / 1e6:9.1f} MFLOP per image"
            f" and step, forward {plan.flops_forward / 1e6:.1f}"
            + (f", frozen backbone once {manifest.backbones[plan.backbone].flops / 1e6:.1f}" if plan.backbone else "")
        )


@command.command()
@click.argument("pack", type=GivenPath())
@require_signature_option
def verify(pack: Path, require_signature: tuple[str, ...] | None) -> None:
    """Check PACK against its description, then load and run every graph in a process of limited memory and time."""
    from edge_sel.engines.trial import try_pack
    from edge_sel.pack.reader import open_pack

    opened = open_pack(pack, required_keys(require_signature))
    try_pack(opened)
    size = sum(info.bytes for info in opened.manifest.files.values())
    say(f"{pack}: {len(opened.manifest.files)} files, {size / 1e6:.1f} MB, every hash and graph is good")
    say(signed_line(opened.signers))


def signed_line(signers: Signers | None) -> str:
    """Who signed a pack, and whether that was checked."""
    if signers is None:
        return "not signed"
    names = " and ".join(signers.fingerprints)
    if signers.checked:
        return f"signed by {names}, checked"
    return f"names {names} as its signer, not checked: --require-signature with that key checks it"


@command.command()
@click.argument("name", type=GivenPath())
def keygen(name: Path) -> None:
    """Make a pair of keys: NAME.key.pem to sign with, to be kept secret, and NAME.pub.pem for the devices."""
    from edge_sel.pack.signatures import make_key

    if name.is_dir():
        raise UsageError("NAME is a folder", where=name, fix="name the keys in it, such as FOLDER/release")

    private, public = (Path(f"{name}.{kind}.pem") for kind in ("key", "pub"))
    found = make_key(private, public)
    say(f"wrote {private} (private, not encrypted) and {public}, fingerprint {found}")


@command.command()
@click.argument("pack", type=GivenPath())
@click.option("--key", required=True, type=GivenPath(), help="Private key (PEM) of `edge-sel pack keygen`.")
def sign(pack: Path, key: Path) -> None:
    """Sign PACK, or an expert of `edge-sel expert`, beside the signatures that it has."""
    from edge_sel.pack.sign import sign_file
    from edge_sel.pack.signatures import read_private_key

    found = sign_file(pack, read_private_key(key))
    others = f", {len(found)} signatures in all" if len(found) > 1 else ""
    say(f"{pack}: signed by {found[-1]}{others}")
