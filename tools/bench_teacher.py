"""Whether a teacher pays: the same model from the same images and seeds in as many epochs, with a teacher and without.

    python tools/bench_teacher.py --data ~/cifar10/train --work /tmp/teacher          # 15 minutes on one idle thread

The teacher is trained first, by ``pretrain`` without cameras, on the same images. All models are judged by other images
of ``--data`` that none of them was trained on, as they are and through random cameras of strength 1. At the end one
model is trained without a teacher for as long as a teacher and its student take together.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.split import stratified_split
from edge_sel.server import warmup
from edge_sel.server.batches import Batches
from edge_sel.server.pretrain import EpochReport, PretrainOptions, accuracy_on, pretrain

SIZE = (32, 32)


def judged(checkpoint: Path, images: ImageSet) -> dict[str, float]:
    """Accuracies in % on clean images and through cameras."""
    model, info = warmup.load(checkpoint)
    loader, rows = Batches(images, info.mean, info.std, torch.device("cpu")), np.arange(len(images))
    seen = {"clean": loader.ordered(rows), "cameras": loader.through_cameras(rows)}
    return {name: 100 * accuracy_on(model, batches) for name, batches in seen.items()}


def trained(name: str, images: ImageSet, judges: ImageSet, work: Path, options: PretrainOptions) -> dict[str, Any]:
    """What became of one training run, its seconds per epoch, and its processor time."""
    reports: list[EpochReport] = []
    started, path = time.process_time(), work / f"{name}.safetensors"
    pretrain(images, path, options, on_epoch=reports.append)
    result: dict[str, Any] = {"name": name, "epochs": options.epochs, "cpu_s": time.process_time() - started}
    result["epoch_s"] = float(np.median([report.seconds for report in reports]))
    result["teacher_epoch_s"] = float(np.median([report.teacher_seconds for report in reports]))
    result |= judged(path, judges)
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="DIR/<class>/*.jpg")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500, help="of each class, to train on")
    parser.add_argument("--judges", type=int, default=400, help="of each class, to judge by")
    parser.add_argument("--model", default="resnet-c")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--teacher-model", default="fast-net")
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    everything = load_folder(args.data, SIZE, limit_per_class=args.images + args.judges)
    share = args.judges / (args.images + args.judges)
    to_train, to_judge = map(everything.subset, stratified_split(everything.labels, share, np.random.default_rng(0)))
    print(f"{len(to_train)} images to train on, {len(to_judge)} to judge by", flush=True)

    student = PretrainOptions(model=args.model, epochs=args.epochs, validation_fraction=0.0, device="cpu")
    teacher = replace(student, model=args.teacher_model, epochs=args.teacher_epochs, robust=False)
    taught_by = trained("teacher", to_train, to_judge, args.work, teacher)
    taught = replace(student, teacher=str(args.work / "teacher.safetensors"))
    pairs = [
        [
            trained(f"{name}-{seed}", to_train, to_judge, args.work, replace(options, seed=seed))
            for name, options in (("alone", student), ("taught", taught))
        ]
        for seed in range(args.seeds)
    ]
    first_alone, first_taught = pairs[0]
    longer = round(args.epochs * (taught_by["cpu_s"] + first_taught["cpu_s"]) / first_alone["cpu_s"])
    trained("alone-longer", to_train, to_judge, args.work, replace(student, epochs=longer))
    for key in ("clean", "cameras", "cpu_s"):
        alone, with_teacher = np.array([[run[key] for run in pair] for pair in pairs]).T
        gains = with_teacher - alone
        print(
            f"{key}: alone {alone.mean():.2f}, taught {with_teacher.mean():.2f}, "
            f"difference {gains.mean():+.2f} (by seed {', '.join(f'{gain:+.2f}' for gain in gains)})"
        )


if __name__ == "__main__":
    main()
