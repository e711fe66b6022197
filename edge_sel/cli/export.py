"""``edge-sel export``."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_sel.cli.common import (
    SEED,
    FiniteRange,
    GivenPath,
    echo_json,
    json_option,
    max_pixels_option,
    require_server_extra,
)
from edge_sel.config.settings import Settings
from edge_sel.errors import DataError, escaped

if TYPE_CHECKING:  # these take long to import, and `--help` does without them
    from edge_sel.data.dataset import ImageSet
    from edge_sel.pack.manifest import GainRow
    from edge_sel.pack.reader import Pack
    from edge_sel.server.source.base import WarmupInfo

TRAINED_ON, JUDGED_BY = 1700, 1000
"""Most images of a rehearsal: as many as a device may have, and as many as tell half a point from chance."""
LEAST_UNSEEN = 200
"""Images; a rehearsal judged by fewer tells more of chance than of training."""


@click.command()
@click.argument("checkpoint", type=GivenPath())
@click.option(
    "--data",
    required=True,
    type=GivenPath(),
    help="Image folder of clean images with the checkpoint's classes, for calibration.",
)
@click.option(
    "--out",
    required=True,
    type=GivenPath(),
    help="Pack to write: a folder, or one file if it ends in .edgepack.",
)
@click.option(
    "--plans",
    help="Comma-separated, also with a budget of channels such as last2-c50. [default: all; c25, c50 of last and full]",
)
@click.option("--optimizer", default="sgd", show_default=True, type=click.Choice(["adam", "sgd"]))
@click.option("--gamma-percentile", default=40.0, show_default=True, type=FiniteRange(0, 100))
@click.option(
    "--limit-per-class",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Calibrate on the first N images of each class.",
)
@click.option(
    "--rehearsals",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Simulated field conditions in which to try what each stage of training gains; a device decides by that.",
)
@click.option("--seed", default=0, show_default=True, type=SEED)
@max_pixels_option
@json_option
def command(
    checkpoint: Path, data: Path, out: Path, plans: str | None, optimizer: str, gamma_percentile: float,
    limit_per_class: int, rehearsals: int, seed: int, max_pixels: int, as_json: bool,
) -> None:  # fmt: skip
    """Turn a warmup CHECKPOINT into a pack that a device can fine-tune without torch."""
    require_server_extra("export")
    import numpy as np

    from edge_sel.data.folder import load_folder
    from edge_sel.data.split import stratified_split
    from edge_sel.edge.rehearsal import rehearse
    from edge_sel.engines.ort import OrtEngine
    from edge_sel.server.export import export_pack
    from edge_sel.server.simulate import simulate_fields
    from edge_sel.server.source.torch_model import from_checkpoint

    def note(line: str) -> None:
        click.echo(line, err=True)

    source = from_checkpoint(checkpoint)
    info = source.info
    images = load_folder(
        data, info.image_size, classes=info.classes, limit_per_class=limit_per_class, max_pixels=max_pixels
    )

    def measure_gains(pack: Pack) -> tuple[GainRow, ...]:
        if not rehearsals:
            return ()
        rng, unseen = np.random.default_rng(seed), load_unseen(data, info, max_pixels)
        held = set() if unseen is None else set(unseen.ids)
        others = np.array([row for row, name in enumerate(images.ids) if name not in held], np.int64)
        if not len(others):  # the folder holds nothing else
            unseen, others = None, np.arange(len(images))
        known = images.subset(rng.permutation(others)[:TRAINED_ON])
        if unseen is None:
            rest, judged = stratified_split(known.labels, 0.4, rng, cap=JUDGED_BY)
            known, unseen, seen = known.subset(rest), known.subset(judged), "which training may have seen"
        else:
            unseen, seen = unseen.subset(rng.permutation(len(unseen))[:JUDGED_BY]), "which training never saw"
        note(f"rehearsing on {len(known)} images, judged by {len(unseen)}, {seen}")
        fields = simulate_fields(known, unseen, rehearsals, seed)
        return rehearse(pack, OrtEngine(), fields, note)

    manifest = export_pack(
        source, images, out,
        plans=[p.strip() for p in plans.split(",")] if plans else (),
        optimizer=optimizer, gamma_percentile=gamma_percentile, seed=seed, now=datetime.now(timezone.utc),
        rehearse=measure_gains, note=note,
    )  # fmt: skip
    if as_json:
        echo_json({"schema": 1, "pack": str(out), **asdict(manifest)})
        return
    for plan in manifest.plans.values():
        ours, other = (manifest.parity[key][plan.name] for key in ("error_to_float64", "error_of_reference"))
        click.echo(
            f"{plan.name:10} trains {len(plan.trainable):3} tensors  {plan.flops_train / 1e6:8.1f} MFLOP/image"
            f"  {ours:.0e} from float64, reference {other:.0e}"
        )
    size = sum(f.bytes for f in manifest.files.values())
    gamma = manifest.calibration.gamma
    click.echo(f"wrote {escaped(str(out))}: {len(manifest.plans)} plans, {size / 1e6:.1f} MB, γ = {gamma:.2e}")


def load_unseen(data: Path, info: WarmupInfo, max_pixels: int = Settings.max_pixels) -> ImageSet | None:
    """The images that pretraining held out, if there are enough of them in the folder."""
    from edge_sel.data.folder import load_folder

    if len(info.held_out) < LEAST_UNSEEN:
        return None
    try:
        found = load_folder(data, info.image_size, classes=info.classes, only=set(info.held_out),
                            max_pixels=max_pixels)  # fmt: skip
    except DataError:  # none is there
        return None
    return found if len(found) >= LEAST_UNSEEN else None
