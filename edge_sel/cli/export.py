"""``edge-sel export``."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_sel.api.export import LARGE, REHEARSALS, export, open_given
from edge_sel.cli.common import SEED, FiniteRange, GivenPath, echo_json, json_option, max_pixels_option, say
from edge_sel.config.settings import Settings
from edge_sel.errors import GraphError, UsageError
from edge_sel.units import counted

if TYPE_CHECKING:
    from edge_sel.server.source.base import Source

FEW_RIGHT = 0.5
"""Share of the calibration images; a model that gets fewer right may have its classes in another order."""


class _Numbers(click.ParamType):  # type: ignore[type-arg]  # generic only in newer clicks
    """Three numbers in 0..1, one for each colour."""

    name = "R,G,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers, or an error."""
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
            self.fail(f"{value} is not three numbers such as 0.485,0.456,0.406", param, ctx)
        if param is not None and param.name == "std" and min(numbers) <= 0:
            self.fail(f"{value}: a standard deviation is above 0", param, ctx)
        return numbers


class _Size(click.ParamType):  # type: ignore[type-arg]
    """One number of pixels, or height and width."""

    name = "224"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Height and width, or an error."""
        match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", str(value))
        size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if min(size) < 1:
            self.fail(f"{value} is not a size such as 224 or 192x256", param, ctx)
        return size


@click.command()
@click.argument("source")
@click.option(
    "--data",
    type=GivenPath(),
    help="Image folder of clean images of the model's classes, for calibration. [required]",
)
@click.option(
    "--out", type=GivenPath(), help="Pack to write: a folder, or one file if it ends in .edgepack. [required]"
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only list the plans that this model can have, and the cost of each; --data is optional.",
)
@click.option(
    "--weights", type=GivenPath(), help="Weights for a model made by name: .safetensors, or .pth with a state dict."
)
@click.option(
    "--classes", type=GivenPath(), help="File with the model's class names, one per line, in the order of its logits."
)
@click.option(
    "--new-head", is_flag=True, help="Fit a new head for the classes of --data, whatever classes the model has."
)
@click.option("--image-size", type=_Size(), help="Pixels, or HEIGHTxWIDTH. [default: what the model was published for]")
@click.option("--mean", type=_Numbers(), help="Mean of each colour, 0..1, by which training images were normalised.")
@click.option("--std", type=_Numbers(), help="Standard deviation of each colour, likewise.")
@click.option(
    "--plans",
    help="Comma-separated plans; a suffix limits the share of channels (last2-c50) or of attention heads (last-h25). "
    "[default: all; c25, c50 of last and full]",
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
    help="Simulated field conditions in which to measure the gain of each training stage; the device decides by it. "
    f"[default: {REHEARSALS}; none above {LARGE} pixels]",
)
@click.option(
    "--with",
    "extras",
    multiple=True,
    type=click.Choice(["ort-training"]),
    help="Add the official artifacts of onnxruntime-training, for `--engine ort-training`.",
)
@click.option("--seed", default=0, show_default=True, type=SEED)
@max_pixels_option
@json_option
def command(
    source: str, data: Path | None, out: Path | None, dry_run: bool, as_json: bool, plans: str | None, optimizer: str,
    extras: tuple[str, ...], gamma_percentile: float, limit_per_class: int, rehearsals: int | None, seed: int,
    max_pixels: int, **given: Any,
) -> None:  # fmt: skip
    """Turn a classifier into a pack that a device can fine-tune without torch.

    SOURCE is imagenet:efficientnet-lite0, a checkpoint of `edge-sel pretrain`, torchvision:NAME or timm:NAME, a
    function that makes a torch model (path/to/model.py:make_model), or a forward .onnx file. Of an ONNX file a pack is
    made without torch.
    """
    wanted = tuple(plan.strip() for plan in plans.split(",")) if plans else ()
    if dry_run:
        show_forecast(open_given(source, data, dry=True, **given), wanted, optimizer, as_json=as_json)
        return
    if data is None or out is None:
        raise UsageError("--data and --out are needed", fix="or --dry-run, to list what a pack would hold")
    pack = export(
        source, data, out=out, plans=wanted, optimizer=optimizer, gamma_percentile=gamma_percentile,
        limit_per_class=limit_per_class, rehearsals=rehearsals, with_ort_training=bool(extras), seed=seed,
        max_pixels=max_pixels, note=lambda line: say(line, err=True), **given,
    )  # fmt: skip
    manifest = pack.manifest
    if as_json:
        echo_json({"schema": 1, "pack": str(out), **asdict(manifest)})
        return
    for plan in manifest.plans.values():
        ours, other = (manifest.parity[key][plan.name] for key in ("error_to_float64", "error_of_reference"))
        say(
            f"{plan.name:10} trains {len(plan.trainable):3} tensors  {plan.flops_train / 1e6:8.1f} MFLOP/image"
            f"  {ours:.0e} from float64, reference {other:.0e}"
        )
    size = sum(f.bytes for f in manifest.files.values())
    right = manifest.calibration.accuracy
    say(f"{right:.0%} of {manifest.calibration.images} calibration images right")
    if right < FEW_RIGHT:
        say("that is few: are the classes in the order of the model's logits? see --classes, --mean and --std")
    gamma = manifest.calibration.gamma
    count = counted(len(manifest.plans), "plan")
    say(f"wrote {out}: {count}, {size / 1e6:.1f} MB, γ = {gamma:.2e}")


def show_forecast(source: Source, plans: tuple[str, ...], optimizer: str, *, as_json: bool) -> None:
    """Print what each plan needs, or why this model cannot have it.

    Raises:
        GraphError: it can have none.
    """
    from edge_sel.server.compile_plans import DEFAULT_PLANS, forecast, weight_bytes

    info = source.info
    found = forecast(source, plans or DEFAULT_PLANS, optimizer, Settings.batch_size)
    if as_json:
        echo_json({
            "schema": 1, "model": info.model, "classes": len(info.classes), "image_size": info.image_size,
            "weight_bytes": weight_bytes(source), "batch_size": Settings.batch_size,
            "plans": [{**plan._asdict(), "trainable": not plan.reason} for plan in found],
        })  # fmt: skip
        return
    height, width = info.image_size
    megabytes = weight_bytes(source) / 1e6
    say(f"{info.model}: {len(info.classes)} classes, {height}×{width} pixels, weights {megabytes:.1f} MB")
    for plan in found:
        if plan.reason:
            say(f"{plan.name:10} no: {plan.reason}")
            continue
        say(
            f"{plan.name:10} {plan.parameters:10,} parameters  {plan.flops / 1e6:9.1f} MFLOP an image a step"
            f"{f' behind {plan.backbone_flops / 1e6:.1f} once' if plan.backbone_flops else ''}"
            f"  {plan.activation_bytes / 1e6:7.1f} MB of activations at {Settings.batch_size} images"
            f"  {plan.pack_bytes / 1e6:.1f} MB in the pack"
        )
    if all(plan.reason for plan in found):
        raise GraphError("no plan can train this model", where=info.model)
