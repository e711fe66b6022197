"""How often a run ends with a worse model than it began with: field sets that are good, bad, small or senseless.

    python tools/never_worse.py --cifar ~/cifar10 --work ~/field --seeds 20          # hours on one thread
    python tools/never_worse.py --digits --work /tmp/worse --seeds 5                 # minutes, without CIFAR-10

Each run is a session as ``edge-sel finetune`` opens it, on 600 images. The model that it leaves is judged by images
that it never saw, as the field set was meant to be seen: clean ones for sets with wrong labels, noise or grey pictures.
A model counts as worse, or better, if it gives up, or wins, more than a quarter of a point there. Beside that stands
the rule of older versions, "greater validation accuracy, else smaller loss": what it would have shipped of what the
same runs tried.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cifar10_field import make_pack, unused_images
from field import cells
from field.measure import accuracy
from safetensors.numpy import save_file

from edge_sel.config.settings import resolve
from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.data.shifts import apply_shift
from edge_sel.edge.build import build_session
from edge_sel.edge.open import RunInputs
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import DataError
from edge_sel.pack import reader
from edge_sel.pack.reader import open_pack
from edge_sel.power.recorder import EnergyRecorder

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


def run(path: Path, pair: Pair, folder: Path, seed: int, options: dict[str, str]) -> dict[str, Any]:
    """One run: what it decided, on what evidence, and how both models do on images that it never saw."""
    shutil.rmtree(folder, ignore_errors=True)
    field, judged = pair
    pack, resolved = open_pack(path), resolve(flags={"seed": seed, "threads": 1, **options})
    with EnergyRecorder(None, background=False) as recorder:
        try:
            session = build_session(RunInputs(pack, field, OrtEngine(1), resolved, recorder, folder / "run"))
            result = session.run()
        except DataError as error:
            return {"failed": str(error)}
    before, after = result["before"]["validation"], result["after"]["validation"]
    start = accuracy(path, None, judged)
    classes = {"classes": json.dumps(field.classes)}
    save_file(dict(session.progress.weights), folder / "tried.safetensors", classes)
    tried = accuracy(path, folder / "tried.safetensors", judged) - start
    return {
        "shipped": result["shipped"],
        "evidence": result["evidence"],
        "old_rule": (after["accuracy"], -after["loss"]) > (before["accuracy"], -before["loss"]),
        "gain": accuracy(path, folder / "run" / "weights.safetensors", judged) - start,
        "tried": tried,
        "plans": [epoch["plan"] for epoch in result["epochs"]],
    }


Draw = Callable[[np.random.Generator], Pair]
"""Clean images for a run: to make a field set of, and to judge by."""


def digits() -> tuple[str, Path, Draw]:
    """The name of what is tried, its pack, and where images come from."""

    def draw(rng: np.random.Generator) -> Pair:
        pool = load_digits("field")
        return pool.subset(np.sort(rng.permutation(len(pool))[:FIELD])), load_digits("test")

    return "digits", Path(reader.__file__).parent / "assets" / "digits.edgepack", draw


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
    """Per set: how often the new model shipped, and how often that was for the worse or the better, by either rule."""
    print(
        f"\n| {'set':12} | runs | shipped | worse | better | mean gain | worst | old rule: shipped | worse | better |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in CONDITIONS:
        here = [row for row in rows if row["condition"] == name and "failed" not in row]
        if not here:
            continue
        gains = np.array([row["gain"] for row in here])
        old = np.array([row["tried"] * row["old_rule"] for row in here])
        counts = [sum(row[key] for row in here) for key in ("shipped", "old_rule")]
        worse, better = ([int((sign * of > MARGIN).sum()) for of in (gains, old)] for sign in (-1, 1))
        print(
            f"| {name:12} | {len(here)} | {counts[0]} | {worse[0]} | {better[0]} | {100 * gains.mean():+.2f} "
            f"| {100 * gains.min():+.2f} | {counts[1]} | {worse[1]} | {better[1]} |"
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
    parser.add_argument("--first-seed", type=int, default=0, help="rules are chosen by seeds from 100 on")
    parser.add_argument("--conditions", help=f"[default: all] of {', '.join(CONDITIONS)}".replace("%", "%%"))
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
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
    options = dict(option.split("=", 1) for option in given.options)
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for number, condition in enumerate(CONDITIONS):
            if (condition, seed) in done or condition not in (given.conditions or ",".join(CONDITIONS)).split(","):
                continue
            rng = np.random.default_rng([seed, number])
            field, judged = draw(rng)
            made = CONDITIONS[condition](field, judged, rng)
            row = {"condition": condition, "seed": seed, **run(pack, made, work / "now", seed, options)}
            rows.append(row)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            text = row.get("failed") or f"{100 * row['gain']:+.2f} points, {row['evidence']['why']}"
            print(f"{condition}, seed {seed}: {text}", file=sys.stderr, flush=True)
    show(rows)


if __name__ == "__main__":
    main()
