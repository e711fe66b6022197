"""``edge-sel pretrain``."""

from __future__ import annotations

from pathlib import Path

import click

from edge_sel.cli.common import (
    SEED,
    FiniteRange,
    GivenPath,
    echo_json,
    json_option,
    max_pixels_option,
    require_server_extra,
    say,
)
from edge_sel.errors import UsageError


@click.command()
@click.option(
    "--data",
    "source",
    required=True,
    metavar="DIR|cifar10",
    help="Image folder (DIR/<class>/*.jpg), or cifar10 to let torchvision download it.",
)
@click.option("--out", required=True, type=GivenPath(), help="Checkpoint to write (.safetensors).")
@click.option("--model", default="resnet-c", show_default=True, help="Model name; torchvision:NAME, timm:NAME.")
@click.option("--pretrained", is_flag=True, help="Start from the library's ImageNet weights.")
@click.option(
    "--teacher",
    metavar="PACK|timm:NAME",
    help="Learn also from a larger model (knowledge distillation): a pack or a checkpoint of the same classes, "
    "or a pretrained model of timm.",
)
@click.option("--image-size", default=32, show_default=True, type=click.IntRange(8, 1024), metavar="PIXELS")
@click.option("--epochs", default=24, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(2))
@click.option("--lr", default=0.2, show_default=True, type=FiniteRange(0, 1000, min_open=True))
@click.option("--limit-per-class", type=click.IntRange(1), help="Use only the first N images of each class.")
@click.option(
    "--validation",
    default=0.05,
    show_default=True,
    type=FiniteRange(0, 0.9),
    help="Share of the images that is held out to report accuracy.",
)
@click.option("--flip/--no-flip", default=True, show_default=True, help="Mirror images at random.")
@click.option("--crop-padding", default=4, show_default=True, type=click.IntRange(0), metavar="PIXELS")
@click.option(
    "--robust/--no-robust",
    default=True,
    show_default=True,
    help="Change a part of the images as random cameras would, so that the model withstands field conditions.",
)
@click.option(
    "--camera-strength",
    default=1.0,
    show_default=True,
    type=FiniteRange(0, 2),
    help="Strength of these changes; 0: none.",
)
@click.option("--seed", default=0, show_default=True, type=SEED)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16"]))
@max_pixels_option
@json_option
def command(
    source: str, out: Path, model: str, pretrained: bool, image_size: int, epochs: int, batch_size: int, lr: float,
    limit_per_class: int | None, validation: float, flip: bool, crop_padding: int, seed: int, device: str,
    precision: str, robust: bool, camera_strength: float, teacher: str | None, max_pixels: int, as_json: bool,
) -> None:  # fmt: skip
    """Train a dense warmup checkpoint that `edge-sel export` turns into a pack."""
    require_server_extra("pretrain")
    if out.is_dir():
        raise UsageError("--out is a folder", where=out, fix="name a file, such as warmup.safetensors")
    from edge_sel.data.folder import load_folder
    from edge_sel.server.pretrain import EpochReport, PretrainOptions, pretrain

    if not source:
        raise UsageError("--data is empty", fix="name a folder, or cifar10")
    if teacher == "":
        raise UsageError("--teacher is empty", fix="name a pack, a checkpoint or timm:NAME")
    if crop_padding >= image_size:
        raise UsageError("--crop-padding must be smaller than --image-size", where=crop_padding)
    size = (image_size, image_size)
    if source == "cifar10":
        from edge_sel.data.cifar10 import load_cifar10

        images = load_cifar10(Path("cifar10"), "train", size)
    else:
        images = load_folder(Path(source), size, limit_per_class=limit_per_class, max_pixels=max_pixels)
    options = PretrainOptions(
        model=model, epochs=epochs, batch_size=batch_size, learning_rate=lr, flip=flip, crop_padding=crop_padding,
        validation_fraction=validation, seed=seed, pretrained=pretrained, device=device, precision=precision,
        robust=robust, camera_strength=camera_strength, teacher=teacher,
    )  # fmt: skip
    say(f"{len(images)} images, {len(images.classes)} classes, {len(images.skipped)} skipped", err=True)

    def show(report: EpochReport) -> None:
        say(
            f"epoch {report.epoch}/{epochs}  loss {report.train_loss:.4f}  "
            f"validation {report.validation_accuracy:.4f}  through random cameras {report.camera_accuracy:.4f}  "
            f"{report.seconds:.0f} s" + (f", teacher {report.teacher_seconds:.0f} s" if teacher else ""),
            err=True,
        )

    info = pretrain(images, out, options, on_epoch=show, note=lambda line: say(line, err=True))
    if as_json:
        skipped = [{"path": s.path, "reason": s.reason} for s in images.skipped]
        echo_json({"schema": 1, "checkpoint": str(out), **info.training, "skipped_images": skipped})
    else:
        say(f"wrote {out}: validation accuracy {info.training['validation_accuracy']:.4f}")
