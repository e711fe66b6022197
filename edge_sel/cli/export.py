"""``edge-sel export``."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import click

from edge_sel.cli.common import echo_json, json_option, require_server_extra


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Image folder of clean images with the checkpoint's classes, for calibration.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Pack to write: a folder, or one file if it ends in .edgepack.",
)
@click.option(
    "--plans",
    help="Comma-separated, also with a budget of channels such as last2-c50. [default: all; c25, c50 of last and full]",
)
@click.option("--optimizer", default="sgd", show_default=True, type=click.Choice(["adam", "sgd"]))
@click.option("--gamma-percentile", default=40.0, show_default=True, type=click.FloatRange(0, 100))
@click.option(
    "--limit-per-class",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Calibrate on the first N images of each class.",
)
@click.option("--seed", default=0, show_default=True)
@json_option
def command(
    checkpoint: Path, data: Path, out: Path, plans: str | None, optimizer: str, gamma_percentile: float,
    limit_per_class: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Turn a warmup CHECKPOINT into a pack that a device can fine-tune without torch."""
    require_server_extra("export")
    from edge_sel.data.folder import load_folder
    from edge_sel.server.export import DEFAULT_PLANS, export_pack
    from edge_sel.server.warmup import load

    _, info = load(checkpoint)
    images = load_folder(data, info.image_size, classes=info.classes, limit_per_class=limit_per_class)
    manifest = export_pack(
        checkpoint, images, out,
        plans=[p.strip() for p in plans.split(",")] if plans else DEFAULT_PLANS,
        optimizer=optimizer, gamma_percentile=gamma_percentile, seed=seed, now=datetime.now(timezone.utc),
        note=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    if as_json:
        echo_json({"schema": 1, "pack": str(out), **asdict(manifest)})
        return
    for plan in manifest.plans.values():
        difference = manifest.parity["largest_relative_difference"][plan.name]
        click.echo(
            f"{plan.name:10} trains {len(plan.trainable):3} tensors  {plan.flops_train / 1e6:8.1f} MFLOP/image"
            f"  differs from torch by {difference:.0e}"
        )
    size = sum(f.bytes for f in manifest.files.values())
    click.echo(f"wrote {out}: {len(manifest.plans)} plans, {size / 1e6:.1f} MB, γ = {manifest.calibration.gamma:.2e}")
