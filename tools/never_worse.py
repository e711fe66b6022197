"""How often a run ends with a worse model than it began with: field sets that are good, bad, small or senseless.

    python tools/never_worse.py --cifar ~/cifar10 --work ~/field --seeds 20          # hours on one thread
    python tools/never_worse.py --digits --work /tmp/worse --seeds 5                 # minutes, without CIFAR-10

Each run is ``edge-sel finetune`` in a process of its own, on 600 images. What it leaves is judged by images that it
never saw, as the field set was meant to be seen: clean ones for sets with wrong labels, noise or grey pictures. A
model counts as worse, or better, if it gives up, or wins, more than a quarter of a point there. Beside that stands the
rule of older versions, "greater validation accuracy, else smaller loss", as the run's own figures would have had it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cifar10_field import make_pack, unused_images
from field import cells
from field.measure import accuracy

from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.data.shifts import apply_shift, write_folder
from edge_sel.pack import builtin

FIELD, JUDGED = 600, 2000
MARGIN = 0.0025
SHIFTS = ("low_light", "fog", "blur_noise")

Pair = tuple[ImageSet, ImageSet]
"""To fine-tune on, and to judge by."""


def pixels(images: ImageSet) -> np.ndarray:
    return images.read(np.arange(len(images)))


def relabelled(images: ImageSet, labels: np.ndarray) -> ImageSet:
    return ImageSet.from_arrays(pixels(images), labels, images.classes)


def wrong(share: float) -> Callable[[ImageSet, ImageSet, np.random.Generator], Pair]:
    def make(field: ImageSet, judged: ImageSet, rng: np.random.Generator) -> Pair:
        labels, classes = field.labels.copy(), len(field.classes)
        hit = rng.permutation(len(labels))[: round(share * len(labels))]
        labels[hit] = (labels[hit] + rng.integers(1, classes, len(hit))) % classes
        return relabelled(field, labels), judged

    return make


def noise(field: ImageSet, judged: ImageSet, rng: np.random.Generator) -> Pair:
    made = rng.integers(0, 256, (len(field), *field.size, 3)).astype(np.uint8)
    return ImageSet.from_arrays(made, field.labels, field.classes), judged


def grey(field: ImageSet, judged: ImageSet, rng: np.random.Generator) -> Pair:
    return ImageSet.from_arrays(
        np.full((len(field), *field.size, 3), 128, np.uint8), field.labels, field.classes
    ), judged


def one_label(field: ImageSet, judged: ImageSet, rng: np.random.Generator) -> Pair:
    """Whatever the image shows; a few have another, for a single class is refused."""
    first = int(rng.integers(len(field.classes)))
    labels = np.full(len(field), first)
    labels[rng.permutation(len(field))[: len(field) // 30]] = (first + 1) % len(field.classes)
    return relabelled(field, labels), judged


def few(count: int) -> Callable[[ImageSet, ImageSet, np.random.Generator], Pair]:
    def make(field: ImageSet, judged: ImageSet, rng: np.random.Generator) -> Pair:
        classes = rng.permutation(len(field.classes))[: 2 if count < 20 else None]
        members = [np.flatnonzero(field.labels == label) for label in classes]  # of each as many, two at the least
        chosen = [rng.permutation(rows)[: -(-count // len(classes))] for rows in members]
        return shift(SHIFTS[int(rng.integers(len(SHIFTS)))])(field.subset(np.concatenate(chosen)), judged, rng)

    return make


def shift(name: str) -> Callable[[ImageSet, ImageSet, np.random.Generator], Pair]:
    def make(field: ImageSet, judged: ImageSet, rng: np.random.Generator) -> Pair:
        first, second = (int(seed) for seed in rng.integers(0, 10**6, 2))
        return apply_shift(name, field, first), apply_shift(name, judged, second)

    return make


def clean(field: ImageSet, judged: ImageSet, rng: np.random.Generator) -> Pair:
    return field, judged


CONDITIONS: dict[str, Callable[[ImageSet, ImageSet, np.random.Generator], Pair]] = {
    "wrong 30 %": wrong(0.3), "wrong 60 %": wrong(0.6), "wrong 90 %": wrong(0.9),
    "noise": noise, "grey": grey, "one label": one_label,
    "5 images": few(5), "20 images": few(20), "100 images": few(100),
    "clean": clean, **{name: shift(name) for name in SHIFTS},
}  # fmt: skip


def run(pack: Path, pair: Pair, folder: Path, seed: int, options: list[str]) -> dict[str, Any]:
    """One run: what it decided, and how the models before and after do on images that it never saw."""
    shutil.rmtree(folder, ignore_errors=True)
    field, judged = pair
    write_folder(field, folder / "field")
    command = [sys.executable, "-m", "edge_sel", "finetune", str(pack), "--data", str(folder / "field")]
    command += ["--out", str(folder / "run"), "--seed", str(seed), "--threads", "1", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    result = json.loads(done.stdout)
    before, after = result["before"]["guard"], result["after"]["guard"]
    return {
        "shipped": result["shipped"],
        "why": result["evidence"]["why"],
        "old_rule": (after["accuracy"], -after["loss"]) > (before["accuracy"], -before["loss"]),
        "gain": accuracy(pack, folder / "run" / "weights.safetensors", judged) - accuracy(pack, None, judged),
        "plans": [epoch["plan"] for epoch in result["epochs"]],
    }


Draw = Callable[[np.random.Generator], Pair]
"""Clean images for a run: to make a field set of, and to judge by."""


def digits() -> tuple[str, Path, Draw]:
    """The name of what is tried, its pack, and where images come from."""

    def draw(rng: np.random.Generator) -> Pair:
        pool = load_digits("field")
        return pool.subset(np.sort(rng.permutation(len(pool))[:FIELD])), load_digits("test")

    return "digits", Path(builtin.__file__).parent / "assets" / "digits.edgepack", draw


def cifar10(cifar: Path, work: Path, plain: bool) -> tuple[str, Path, Draw]:
    """The same of CIFAR-10; the images are those that pretraining did not use."""
    name, epochs = ("plain", cells.PLAIN_EPOCHS) if plain else ("robust", cells.ROBUST_EPOCHS)
    _, pack = make_pack(cifar / "train", work, epochs, robust=not plain)
    pool = unused_images(cifar)

    def draw(rng: np.random.Generator) -> Pair:
        order = rng.permutation(len(pool))
        return pool.subset(np.sort(order[JUDGED:][:FIELD])), pool.subset(np.sort(order[:JUDGED]))

    return name, pack, draw


def show(rows: list[dict[str, Any]]) -> None:
    print(f"\n| {'set':12} | runs | shipped | by the old rule | worse | better | mean gain in points | worst |")
    print("|---|---|---|---|---|---|---|---|")
    for name in CONDITIONS:
        here = [row for row in rows if row["condition"] == name and "failed" not in row]
        if not here:
            continue
        gains = np.array([row["gain"] for row in here])
        counts = [sum(row[key] for row in here) for key in ("shipped", "old_rule")]
        counts += [int((gains < -MARGIN).sum()), int((gains > MARGIN).sum())]
        print(
            f"| {name:12} | {len(here)} | {counts[0]} | {counts[1]} | {counts[2]} | {counts[3]} "
            f"| {100 * gains.mean():+.2f} | {100 * gains.min():+.2f} |"
        )
    for row in rows:
        if "failed" in row:
            print(f"failed: {row['condition']}, seed {row['seed']}: {row['failed']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where packs, images, runs and results go")
    parser.add_argument("--cifar", type=Path, help="image-folder tree with train/ and test/")
    parser.add_argument("--digits", action="store_true", help="the built-in pack and digits instead")
    parser.add_argument("--plain", action="store_true", help="the plain warmup instead of the robust one")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--conditions", help=f"[default: all] of {', '.join(CONDITIONS)}")
    parser.add_argument("--options", default="", help="further options of `edge-sel finetune`")
    given = parser.parse_args()
    if not given.digits and given.cifar is None:
        parser.error("--cifar is missing; or --digits")
    name, pack, draw = (
        digits() if given.digits else cifar10(given.cifar.expanduser(), given.work.expanduser(), given.plain)
    )
    work = given.work.expanduser() / "never_worse" / name
    work.mkdir(parents=True, exist_ok=True)
    results, rows = work / "results.jsonl", []
    if results.exists():
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    done = {(row["condition"], row["seed"]) for row in rows}
    for seed in range(given.seeds):
        for number, condition in enumerate(CONDITIONS):
            if (condition, seed) in done or condition not in (given.conditions or ",".join(CONDITIONS)).split(","):
                continue
            rng = np.random.default_rng([seed, number])
            field, judged = draw(rng)
            made = CONDITIONS[condition](field, judged, rng)
            row = {"condition": condition, "seed": seed, **run(pack, made, work / "now", seed, given.options.split())}
            rows.append(row)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            told = row.get("failed") or f"{100 * row['gain']:+.2f} points, {row['why']}"
            print(f"{condition}, seed {seed}: {told}", file=sys.stderr, flush=True)
    show(rows)


if __name__ == "__main__":
    main()
