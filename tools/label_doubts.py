"""How many labels are in doubt, and how many of these wrongly, by good and bad features of real pictures.

    python tools/label_doubts.py --pack PACK --data DIR [--each 40] [--seeds 10]

Features of the pack's network, random projections of them (12 to 200 numbers) and thumbnails stand for networks from
good to useless. Heads are fitted to so many pictures of each class; labels are changed at random. Per row: share of
pictures that are right when left out, then of good labels in doubt by ``find_label_errors`` and by
``surest_label_errors``, and of wrong labels found by the two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edge_sel.data.dataset import normalise
from edge_sel.data.folder import load_folder
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.plan_kinds import RIDGE
from edge_sel.pack.reader import open_pack
from edge_sel.sel.calibration import find_label_errors, surest_label_errors
from edge_sel.sel.ridge import fit_head

PROJECTIONS = (200, 96, 48, 24, 12)
CHANGED = (0.0, 0.03, 0.1, 0.3, 0.5)
_CHUNK, _STEP = 16, 28


def features_of(pack_path: Path, data: Path) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Features [N, F] by name, labels [N] and the number of classes."""
    pack = open_pack(pack_path)
    model = pack.manifest.model
    images = load_folder(data, model.image_size, classes=model.classes)
    backbone = OrtEngine(1).backbone(pack, RIDGE, pack.weights())
    assert backbone is not None
    chunks = np.array_split(np.arange(len(images)), -(-len(images) // _CHUNK))
    own = np.concatenate([backbone(normalise(images.read(chunk), model.mean, model.std)) for chunk in chunks])
    small = np.concatenate([images.read(chunk)[:, ::_STEP, ::_STEP].reshape(len(chunk), -1) for chunk in chunks])
    found = {"the network's": own}
    for width in PROJECTIONS:
        directions = np.random.default_rng(0).normal(size=(own.shape[1], width)).astype(np.float32)
        found[f"{width} projections"] = np.maximum(0, own @ directions / 30)
    return {**found, "thumbnails": small.astype(np.float32) / 255}, images.labels, len(model.classes)


def shares(features: np.ndarray, labels: np.ndarray, classes: int, changed: float, each: int, seed: int) -> list[float]:
    """Right, then false and true doubts of both."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:each] for label in range(classes)])
    true, given = labels[rows], labels[rows].copy()
    hit = rng.permutation(len(rows))[: round(changed * len(rows))]
    given[hit] = (given[hit] + rng.integers(1, classes, len(hit))) % classes
    fit = fit_head(features[rows], given, classes)
    wrong, found = given != true, []
    for method in (find_label_errors, surest_label_errors):
        doubted = method(fit.left_out, given) >= 0
        found += [(doubted & ~wrong).sum() / max(1, (~wrong).sum()), (doubted & wrong).sum() / max(1, wrong.sum())]
    return [float((fit.left_out.argmax(1) == true).mean()), found[0], found[2], found[1], found[3]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--each", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    features, labels, classes = features_of(given.pack, given.data)
    print("features          changed  right | false: all, surest (most) | found: all, surest")
    for name, values in features.items():
        for changed in CHANGED if name == next(iter(features)) else CHANGED[:1]:
            each = np.array([shares(values, labels, classes, changed, given.each, seed) for seed in range(given.seeds)])
            right, loose, sure, found, surely = each.mean(0)
            print(f"{name:17} {changed:6.0%} {right:6.1%} | {loose:6.1%} {sure:6.1%} ({each[:, 2].max():.1%}) | "
                  f"{found:6.1%} {surely:6.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
