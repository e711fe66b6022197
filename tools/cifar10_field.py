"""The CIFAR-10 field recipe: pretrain on clean images, export, fine-tune on 2 000 shifted ones, report.

    python tools/cifar10_field.py --cifar ~/cifar10 --work ~/field [--shift low_light] [--part test]

Images: of each class the pretrainer uses 4 100 of the 5 000 training images (4 000 to learn from, 100 to report on);
of the 900 others, 200 become the device's labelled images and 200 the validation images, on which settings are
chosen (``--part val``); the official test images are only for the final figures. Shifts have fixed seeds.

Every step is the public command line, so each can be repeated by hand; finished steps are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.data.cifar10 import load_cifar10
from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.shifts import SHIFTS, apply_shift, write_folder

PER_CLASS = 4100
FIELD_PER_CLASS = 200


def edge_sel(*arguments: object) -> dict[str, Any]:
    """Run one edge-sel command and return its JSON."""
    command = [sys.executable, "-m", "edge_sel", *map(str, arguments), "--json"]
    print("$ edge-sel", *map(str, arguments), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"edge-sel ended with status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def prepare(cifar: Path, work: Path, shift: str) -> None:
    """Write the shifted field, validation and test folders, once."""
    if (work / shift / "test").is_dir():
        return
    rest = unused_images(cifar)
    parts = {
        "field": _per_class(rest, 0),
        "val": _per_class(rest, FIELD_PER_CLASS),
        "test": load_cifar10(cifar, "test"),
    }
    for seed, (name, images) in enumerate(parts.items(), start=1):
        write_folder(apply_shift(shift, images, seed=seed), work / shift / name)


def unused_images(cifar: Path) -> ImageSet:
    """The 900 training images of each class that the pretrainer does not use."""
    everything = load_cifar10(cifar, "train")
    pretraining = set(load_folder(cifar / "train", (32, 32), limit_per_class=PER_CLASS).ids)
    return everything.subset([i for i, name in enumerate(everything.ids) if name not in pretraining])


def make_pack(images: Path, work: Path, epochs: int, *, robust: bool = False) -> tuple[Path, Path]:
    """Checkpoint and pack in ``work``, made from its share of a folder of clean images unless they are there."""
    name = "robust" if robust else "plain"
    checkpoint, pack = work / f"{name}.safetensors", work / f"{name}.pack"
    if not checkpoint.exists():
        edge_sel(
            "pretrain", "--data", images, "--limit-per-class", PER_CLASS, "--validation", 0.0244,
            "--epochs", epochs, "--robust" if robust else "--no-robust", "--out", checkpoint,
        )  # fmt: skip
    if not pack.exists():
        edge_sel("export", checkpoint, "--data", images, "--out", pack)
    return checkpoint, pack


def _per_class(images: ImageSet, start: int) -> ImageSet:
    chosen = [np.flatnonzero(images.labels == c)[start : start + FIELD_PER_CLASS] for c in range(len(images.classes))]
    return images.subset(np.concatenate(chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, required=True, help="image-folder tree with train/ and test/")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoint, pack, folders and runs go")
    parser.add_argument("--shift", choices=sorted(SHIFTS), default="low_light")
    parser.add_argument("--part", choices=["val", "test"], default="test", help="what the figures are measured on")
    parser.add_argument("--epochs", type=int, default=24, help="of pretraining")
    parser.add_argument("--plain", action="store_true", help="pretrain without random cameras")
    parser.add_argument("options", nargs="*", help="after --: options for finetune")
    arguments = parser.parse_args()
    work, shift = arguments.work.expanduser(), arguments.shift
    cifar = arguments.cifar.expanduser()
    prepare(cifar, work, shift)
    _, pack = make_pack(cifar / "train", work, arguments.epochs, robust=not arguments.plain)
    clean = edge_sel("evaluate", pack, "--data", cifar / arguments.part) if arguments.part == "test" else None
    number = sum(1 for _ in (work / shift).glob("run-*"))
    out = work / shift / f"run-{number:03d}"
    result = edge_sel(
        "finetune", pack, "--data", work / shift / "field", "--test", work / shift / arguments.part,
        "--out", out, *arguments.options,
    )  # fmt: skip
    report(result, clean, arguments.part)


def report(result: dict[str, Any], clean: dict[str, Any] | None, part: str) -> None:
    """Print the figures as a Markdown table."""
    if clean:
        print(f"clean test accuracy {100 * clean['accuracy']:.2f} % on {clean['images']} images")
    accuracy, energy = result["accuracy"], result["energy"]
    print(f"shifted {part}: {100 * accuracy['before']:.2f} % before, {100 * accuracy['after']:.2f} % after")
    total = "unavailable" if energy["total_j"] is None else f"{energy['total_j']:.1f} J, {energy['net_j']:.1f} J net"
    print(f"energy {total} ({energy['source']}, {energy['meter']}), {result['time_s']:.1f} s")
    columns = ("epoch", "plan", "energy_j", "net_j", "energy_source", "trained", "active_rate", "sparsity",
               "executed_flops_t", "nominal_flops_t", "train_loss", "validation_acc", "time_s")  # fmt: skip
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for epoch in result["epochs"]:
        cells = [f"{epoch[c]:.4g}" if isinstance(epoch[c], float) else str(epoch[c]) for c in columns]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
