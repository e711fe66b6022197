"""Which images to ask about: accuracy after few labels, by what `edge-sel watch` and `label` choose, and by others.

    python tools/watch_benchmark.py --work DIR --photos PHOTOS --pack PACK [--cifar CIFAR --small PACK] [--seeds 0,1,2]

A stream of images arrives in a folder: 85 % are of the kind that the pack knows, 15 % of a new kind. Each scene
comes as a run of one to six frames, displaced and lighter or darker. ``animals``: the familiar kind are
photographs, the new one paintings (PHOTOS and PACK are those of tools/photo_benchmark.py). ``fog``, ``background``:
CIFAR-10 as it is and through one of ``data/shifts.py`` (--small is a pack for CIFAR-10).

``watch`` is the product from end to end: the watcher keeps images, the teacher asks for a label of each, every seventh
for validation; what is held back for that is not learnt from. The others choose among all images of the stream, and
learn from every label: ``random``; ``confident``, the least confident of the model; ``k-centre``; ``badge`` (k-means++
on gradients of the head, Ash et al. 2020); ``v-optimal`` (mean predictive variance, Yu et al. 2006, not weighted by
doubt). ``random-kept`` is random among what the watcher kept. ``all`` learns every image of the stream. Each choice is
learnt by the same closed form. Test images are neither of the stream nor of what settings were chosen by.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np
from PIL import Image, ImageEnhance

from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.shifts import apply_shift
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.reader import open_pack
from edge_sel.sel.design import label_gains, with_samples
from edge_sel.sel.ridge import fit_head
from edge_sel.watch.home import open_home
from edge_sel.watch.learner import Learner, is_held
from edge_sel.watch.observer import Observer
from edge_sel.watch.teacher import Teacher

BUDGETS = (14, 28, 56, 112)
NEW_SHARE, SCENES = 0.15, 400
MOST_FRAMES = 6
RATE = 0.15
OTHERS = ("random", "random-kept", "confident", "k-centre", "badge", "v-optimal")
COLUMNS = ("case", "seed", "choice", "labels", "new", "familiar", "duplicates", "asked_new")


class Case(NamedTuple):
    """What a stream is made of, and what judges it."""

    pack: Path
    familiar: ImageSet
    new: ImageSet
    test_familiar: ImageSet
    test_new: ImageSet


def main() -> None:
    """Run every case and seed, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    names = ["animals"] if given.photos else []
    names += ["fog", "background"] if given.cifar else []
    rows: list[dict[str, Any]] = []
    costs: list[dict[str, Any]] = []
    for name in names:
        for seed in map(int, given.seeds.split(",")):
            done = given.work / f"{name}-{seed}.json"
            if not done.exists():
                result = run(name, seed, make_case(name, seed, given), given.work / f"{name}-{seed}")
                done.write_text(json.dumps(result))
            found, cost = json.loads(done.read_text())
            rows, costs = rows + found, [*costs, cost]
            print(json.dumps(cost), file=sys.stderr, flush=True)
    print(table(rows))
    print(json.dumps({"joules_per_1000_images": [cost["joules_per_1000"] for cost in costs]}))
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


def make_case(name: str, seed: int, given: argparse.Namespace) -> Case:
    """Images of the stream and of the test, which share none."""
    rng = np.random.default_rng([seed, 1])
    if name == "animals":
        pack = open_pack(given.pack)
        size, classes = pack.manifest.model.image_size, pack.manifest.model.classes
        known, new, test_new = (
            load_folder(given.photos / "animals" / part, size, classes=classes)
            for part in ("photos-test", "paintings", "paintings-test")
        )
        order = rng.permutation(len(known))
        half = len(known) // 2 + 60
        return Case(given.pack, known.subset(order[:half]), new, known.subset(order[half:]), test_new)
    pack = open_pack(given.small)
    test = load_folder(given.cifar / "test", pack.manifest.model.image_size, classes=pack.manifest.model.classes)
    order = rng.permutation(len(test))[:4000]
    parts = [test.subset(order[start : start + 1000]) for start in range(0, 4000, 1000)]
    shifted = [apply_shift(name, part, seed) for part in (parts[1], parts[3])]
    return Case(given.small, parts[0], shifted[0], parts[2], shifted[1])


def write_stream(case: Case, folder: Path, seed: int) -> tuple[dict[str, int], dict[str, int], dict[str, bool]]:
    """Files in the order in which they arrive: label, scene and whether it is of the new kind, by name."""
    rng = np.random.default_rng([seed, 2])
    folder.mkdir(parents=True)
    count_new = round(NEW_SHARE * SCENES)
    scenes = [(case.familiar, row, False) for row in rng.permutation(len(case.familiar))[: SCENES - count_new].tolist()]
    scenes += [(case.new, row, True) for row in rng.permutation(len(case.new))[:count_new].tolist()]
    labels, scene_of, is_new, number = {}, {}, {}, 0
    for scene, place in enumerate(rng.permutation(len(scenes)).tolist()):
        images, row, new = scenes[place]
        pixels = images.read(np.array([row]))[0]
        for frame in range(rng.integers(1, MOST_FRAMES + 1)):
            name = f"{number:06d}.jpg"
            _frame(pixels, frame, rng).save(folder / name, "JPEG", quality=92)
            labels[name], scene_of[name], is_new[name] = int(images.labels[row]), scene, new
            number += 1
    return labels, scene_of, is_new


def _frame(pixels: np.ndarray, number: int, rng: np.random.Generator) -> Image.Image:
    """The same scene a moment later."""
    image = Image.fromarray(pixels)
    if not number:
        return image
    most = max(1, pixels.shape[0] // 40)
    right, down = rng.integers(-most, most + 1, 2).tolist()
    moved = image.transform(image.size, Image.Transform.AFFINE, (1, 0, right, 0, 1, down), Image.Resampling.BILINEAR)
    lighter = ImageEnhance.Brightness(moved).enhance(float(rng.uniform(0.92, 1.08)))
    noisy = np.asarray(lighter, np.float32) + rng.normal(0, 2, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def run(name: str, seed: int, case: Case, work: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All choices on one stream."""
    shutil.rmtree(work, ignore_errors=True)
    labels, scene_of, is_new = write_stream(case, work / "camera", seed)
    home = work / "home"
    command = [sys.executable, "-m", "edge_sel", "watch", str(work / "camera"), "--home", str(home), "--model",
               str(case.pack), "--once", "--threads", "1", "--rate", str(RATE), "--no-learning"]  # fmt: skip
    began_s = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    took_s = time.perf_counter() - began_s
    opened = open_home(home)
    counters = opened.records.counters()
    pack = open_pack(case.pack)
    observer = Observer(pack, 0, OrtEngine(1))
    tests = [
        (observer.features(part.read(np.arange(len(part)))), part.labels)
        for part in (case.test_new, case.test_familiar)
    ]
    stream = load_stream(observer, work / "camera", labels)
    rows: list[dict[str, Any]] = []

    def add(choice: str, asked: list[str], count: int, head: tuple[np.ndarray, np.ndarray]) -> None:
        new, familiar = (100 * float((observer.logits(each, head).argmax(1) == y).mean()) for each, y in tests)
        repeated = 1 - len({scene_of[each] for each in asked}) / max(len(asked), 1)
        rows.append({
            "case": name, "seed": seed, "choice": choice, "labels": count, "new": round(new, 2),
            "familiar": round(familiar, 2), "duplicates": round(100 * repeated, 1),
            "asked_new": round(100 * mean(is_new[each] for each in asked), 1) if asked else 0.0,
        })  # fmt: skip

    add("shipped", [], 0, observer.head)
    everything = np.arange(len(stream.names))
    add("all", stream.names, len(everything), fitted(observer, stream.rows, stream.labels))
    kept = {Path(line[1]).name for line in opened.records.lines() if line[7]}
    for choice in OTHERS:
        order = choose(choice, observer, stream, kept, seed)
        for budget in BUDGETS:
            if len(order) >= budget:
                taken = order[:budget]
                head = fitted(observer, stream.rows[taken], stream.labels[taken])
                add(choice, [stream.names[row] for row in taken], budget, head)
    ask_by_teacher(opened, labels, pack.manifest.model.classes, add)
    opened.close()
    cost = {"case": name, "seed": seed, "images": len(labels), "counters": counters, "seconds": round(took_s, 2),
            "joules_per_1000": round(counters.get("millijoules", 0) / max(counters["images"], 1), 1)}  # fmt: skip
    return rows, cost


class Stream(NamedTuple):
    """All images that arrived."""

    names: list[str]
    rows: np.ndarray
    labels: np.ndarray


def load_stream(observer: Observer, folder: Path, labels: dict[str, int]) -> Stream:
    """Their features."""
    names = sorted(labels)
    rows = []
    for start in range(0, len(names), 32):
        pixels = [np.asarray(Image.open(folder / name).convert("RGB")) for name in names[start : start + 32]]
        rows.append(observer.features(np.stack(pixels)))
    return Stream(names, np.concatenate(rows), np.array([labels[name] for name in names]))


def fitted(observer: Observer, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The head in closed form, as the learner fits it."""
    groups, server = observer.pack.manifest.model.feature_groups(observer.width), observer.server
    fit = fit_head(
        rows.astype(np.float32), labels, len(observer.classes), old=observer.head, groups=groups, shallow=groups[0],
        standard=server.standard, prior=server.prior, examples=server.seen,
    )  # fmt: skip
    return fit.weight, fit.bias


def choose(choice: str, observer: Observer, stream: Stream, kept: set[str], seed: int) -> np.ndarray:
    """Images in the order in which they would be asked about, by the model as it is shipped."""
    rng, most = np.random.default_rng([seed, 3]), max(BUDGETS)
    if choice == "random":
        return rng.permutation(len(stream.names))[:most]
    if choice == "random-kept":
        return rng.permutation([row for row, name in enumerate(stream.names) if name in kept])[:most]
    probabilities = observer.probabilities(stream.rows)
    if choice == "confident":
        return np.argsort(probabilities.max(1), kind="stable")[:most]
    units = observer.units(stream.rows)
    if choice == "v-optimal":
        known, chosen, directions = observer.known, [], None
        from edge_sel.sel.design import directions_of

        directions = directions_of(units, known, rng.standard_normal((len(units), min(256, len(units)))))
        known, units = known._replace(explained=known.explained @ directions), units @ directions
        for _ in range(most):
            gains = label_gains(units, known, np.ones(len(units)))
            gains[chosen] = -1
            chosen.append(int(gains.argmax()))
            known = with_samples(known, units[chosen[-1:]])
        return np.array(chosen)
    if choice == "k-centre":
        return k_centre(units, most, rng)
    residual = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(1)]
    return badge(residual, units, most, rng)


def k_centre(units: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Greedily the image farthest from those that were chosen."""
    chosen = [int(rng.integers(len(units)))]
    far = np.linalg.norm(units - units[chosen[0]], axis=1)
    while len(chosen) < most:
        chosen.append(int(far.argmax()))
        far = np.minimum(far, np.linalg.norm(units - units[chosen[-1]], axis=1))
    return np.array(chosen)


def badge(residual: np.ndarray, units: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ on gradients ``residual ⊗ features``, whose products are products of the two."""
    lengths = (residual**2).sum(1) * (units**2).sum(1)
    chosen = [int(lengths.argmax())]

    def distance(row: int) -> np.ndarray:
        inner = (residual @ residual[row]) * (units @ units[row])
        return np.maximum(lengths + lengths[row] - 2 * inner, 0)

    far = distance(chosen[0])
    while len(chosen) < most:
        far[chosen] = 0
        chosen.append(int(rng.choice(len(far), p=far / far.sum())) if far.sum() > 0 else int(rng.integers(len(far))))
        far = np.minimum(far, distance(chosen[-1]))
    return np.array(chosen)


def ask_by_teacher(opened: Any, labels: dict[str, int], classes: tuple[str, ...], add: Any) -> None:
    """The product: each label changes the candidate before the next image is chosen."""
    learner = Learner(opened, OrtEngine(1))
    teacher = Teacher(learner, time.monotonic, np.random.default_rng(0))
    source = {line[0]: Path(line[1]).name for line in opened.records.lines()}
    teacher.refresh(None)
    asked: list[str] = []
    while len(asked) < max(BUDGETS) and (image := teacher.next_image("bench")) is not None:
        name = source[image.number]
        opened.records.add_label(image.number, classes[labels[name]], "bench", 0.0)
        teacher.answered(image.number)
        asked.append(name)
        candidate = learner.candidate()
        teacher.refresh(candidate)
        if len(asked) in BUDGETS:
            head = learner.observer.head if candidate is None else (candidate.fit.weight, candidate.fit.bias)
            add("watch", asked, len(asked), head)
    held = is_held(np.array([image.digest for image in opened.records.kept()], np.uint64))
    print(f"{held.mean():.2f} of what was kept is for validation", file=sys.stderr)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: accuracy on new / familiar test images, mean and deviation over seeds."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        heads = " | ".join(f"{budget} labels" for budget in BUDGETS)
        lines += [f"\n### {case}\n", f"| choice | {heads} | asked twice |", "|---|" + "---|" * (len(BUDGETS) + 1)]
        for choice in dict.fromkeys(row["choice"] for row in rows):
            cells = []
            for budget in BUDGETS if choice not in ("shipped", "all") else (None,):
                part = [
                    r for r in rows if r["case"] == case and r["choice"] == choice and budget in (None, r["labels"])
                ]
                if not part:
                    cells.append("–")
                    continue
                new, familiar = ([row[key] for row in part] for key in ("new", "familiar"))
                spread = stdev(new) if len(new) > 1 else 0.0
                cells.append(f"{mean(new):.1f} ± {spread:.1f} / {mean(familiar):.1f}")
            repeated = [row["duplicates"] for row in rows if row["case"] == case and row["choice"] == choice]
            lines.append(f"| {choice} | {' | '.join(cells)} | {mean(repeated):.0f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
