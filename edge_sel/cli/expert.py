"""``edge-sel signature`` on a device, and ``edge-sel expert`` on a server that trains a pack for it."""

from __future__ import annotations

from pathlib import Path

import click

from edge_sel.cli.common import (
    SEED,
    GivenPath,
    echo_json,
    json_option,
    max_pixels_option,
    require_server_extra,
    require_signature_option,
    required_keys,
    say,
)
from edge_sel.errors import UsageError


@click.command()
@click.argument("pack", type=GivenPath())
@click.option("--data", required=True, type=GivenPath(), help="This device's images: DIR/<class>/*.jpg.")
@click.option("--out", required=True, type=GivenPath(), help="File to write, about a kilobyte of JSON.")
@click.option("--seed", default=0, show_default=True, type=SEED)
@max_pixels_option
@require_signature_option
@json_option
def signature_command(
    pack: Path, data: Path, out: Path, seed: int, max_pixels: int, require_signature: tuple[str, ...] | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write statistics of this device's images, from which no image can be seen.

    A server trains an expert for this device with them: `edge-sel expert`.
    """
    if out.is_dir():
        raise UsageError("--out is a folder", where=out, fix="name a file, such as signature.json")
    import numpy as np

    from edge_sel.data.folder import load_folder
    from edge_sel.data.signature import take_signature, write_signature
    from edge_sel.pack.reader import open_pack

    model = open_pack(pack, required_keys(require_signature)).manifest.model
    images = load_folder(data, model.image_size, classes=model.classes, new_classes="extend", max_pixels=max_pixels)
    signature = take_signature(images, np.random.default_rng(seed))
    write_signature(out, signature)
    if as_json:
        echo_json({"schema": 1, "signature": str(out), "images": signature.images, "bytes": out.stat().st_size})
    else:
        say(f"wrote {out}: {signature.images} images, {out.stat().st_size} bytes")


@click.command()
@click.argument("pack", type=GivenPath())
@click.argument("signature", type=GivenPath())
@click.option(
    "--data",
    required=True,
    type=GivenPath(),
    help="The server's own labelled images, of the pack's classes: what the pack was trained on.",
)
@click.option("--out", required=True, type=GivenPath(), help="Expert to write (.safetensors).")
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1))
@click.option("--limit-per-class", type=click.IntRange(1), help="Use only N images of each class.")
@click.option("--seed", default=0, show_default=True, type=SEED)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
@max_pixels_option
@json_option
def command(
    pack: Path, signature: Path, data: Path, out: Path, epochs: int, limit_per_class: int | None, seed: int,
    device: str, max_pixels: int, as_json: bool,
) -> None:  # fmt: skip
    """Train PACK for the device that SIGNATURE is from, on the server's own images.

    The images are changed so that they look like the device's. On the device: `edge-sel finetune --expert`.
    """
    require_server_extra("expert")
    if out.is_dir():
        raise UsageError("--out is a folder", where=out, fix="name a file, such as expert.safetensors")
    from edge_sel.data.folder import load_folder, require_trainable
    from edge_sel.data.signature import read_signature
    from edge_sel.pack.reader import open_pack
    from edge_sel.pack.weights import write_expert
    from edge_sel.server.expert import fit_place, train_expert

    def note(line: str) -> None:
        say(line, err=True)

    opened, wanted = open_pack(pack), read_signature(signature)
    model = opened.manifest.model
    if wanted.size != model.image_size:
        raise UsageError("the signature's images have another size than the pack's", where=signature,
                         fix="take it again with this pack")  # fmt: skip
    images = load_folder(
        data, model.image_size, classes=model.classes, limit_per_class=limit_per_class, max_pixels=max_pixels
    )
    require_trainable(images, 1, where=data)
    place = fit_place(wanted, images, seed, note)
    weights = train_expert(opened, images, place, epochs=epochs, seed=seed, device=device, note=note)
    write_expert(out, opened, weights)
    if as_json:
        echo_json({"schema": 1, "expert": str(out), "images": len(images), "bytes": out.stat().st_size})
    else:
        say(f"wrote {out}: trained on {len(images)} images, {out.stat().st_size / 1e6:.1f} MB")
