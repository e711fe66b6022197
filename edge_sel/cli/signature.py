"""``edge-sel signature``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_sel.cli.common import (
    SEED,
    GivenPath,
    echo_json,
    json_option,
    max_pixels_option,
    require_signature_option,
    required_keys,
)
from edge_sel.errors import UsageError, escaped


@click.command()
@click.argument("pack", type=GivenPath())
@click.option("--data", required=True, type=GivenPath(), help="This device's images: DIR/<class>/*.jpg.")
@click.option("--out", required=True, type=GivenPath(), help="File to write, about a kilobyte of JSON.")
@click.option("--seed", default=0, show_default=True, type=SEED)
@max_pixels_option
@require_signature_option
@json_option
def command(
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
        click.echo(f"wrote {escaped(str(out))}: {signature.images} images, {out.stat().st_size} bytes")
