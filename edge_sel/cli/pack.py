"""``edge-sel pack inspect`` and ``edge-sel pack verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edge_sel.cli.common import GivenPath, echo_json
from edge_sel.errors import escaped


@click.group()
def command() -> None:
    """Inspect or verify a pack."""


@command.command()
@click.argument("pack", type=GivenPath())
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as one JSON object on stdout.")
def inspect(pack: Path, as_json: bool) -> None:
    """What PACK holds: model, classes, plans and what each costs."""
    from edge_sel.pack.reader import open_pack

    manifest = open_pack(pack).manifest
    if as_json:
        echo_json({"schema": 1, "pack": str(pack), **asdict(manifest)})
        return
    model, calibration = manifest.model, manifest.calibration
    height, width = model.image_size
    click.echo(
        f"{escaped(model.name)}: {model.parameters:,} parameters, {width}×{height} pixels, "
        f"optimizer {manifest.optimizer}"
    )
    click.echo(f"classes ({len(model.classes)}): {', '.join(map(escaped, model.classes))}")
    click.echo(
        f"calibrated on {calibration.images} images: accuracy {100 * calibration.accuracy:.1f} %, "
        f"γ {calibration.gamma:.2e} (p{calibration.gamma_percentile:g})"
    )
    for plan in manifest.plans.values():
        click.echo(
            f"  {escaped(plan.name):10} {len(plan.trainable):3} tensors trained, "
            f"{plan.flops_train / 1e6:9.1f} MFLOP per image"
            f" and step, forward {plan.flops_forward / 1e6:.1f}"
            + (f", frozen backbone once {manifest.prefixes[plan.prefix].flops / 1e6:.1f}" if plan.prefix else "")
        )


@command.command()
@click.argument("pack", type=GivenPath())
def verify(pack: Path) -> None:
    """Check PACK against its description, then load and run every graph in a process of limited memory and time."""
    from edge_sel.engines.trial import try_pack
    from edge_sel.pack.reader import open_pack

    opened = open_pack(pack)
    try_pack(opened)
    size = sum(info.bytes for info in opened.manifest.files.values())
    click.echo(
        f"{escaped(str(pack))}: {len(opened.manifest.files)} files, {size / 1e6:.1f} MB, every hash and graph is good"
    )
