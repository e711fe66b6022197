"""What a curious server reads from an update: how like the features that it can compute are to a device's image.

    python tools/fleet_privacy.py --pack PACK --photos PHOTOS [--seeds 0,1,2]

From ``ΦᵀT`` and the counts follows the mean of each class. Of one image that is the image's own features. Reported is
the cosine between the mean and the features of a member, after the mean of all images of the class (of other devices)
is taken off both: 1 is the image itself, 1/√n is what n equal parts give by themselves. From ``ΦᵀΦ`` follows the space
that the images span, whose share of a member's length is 1 by construction, and of another image's: that is how well a
server can tell whether a picture that it has was among them (membership).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import numpy as np

from edge_sel.data.folder import load_folder
from edge_sel.engines.ort import OrtEngine
from edge_sel.fleet.statistics import features_of, rows_of
from edge_sel.pack.reader import open_pack

COUNTS = (1, 2, 5, 10, 20, 50)
IMAGES = (5, 50, 500)


def main() -> None:
    """Print two small tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    pack = open_pack(given.pack)
    images = load_folder(given.photos / "animals" / "paintings", pack.manifest.model.image_size,
                         classes=pack.manifest.model.classes)  # fmt: skip
    rows, labels = rows_of(pack, features_of(pack, images, OrtEngine(1))), images.labels
    seeds = [int(seed) for seed in given.seeds.split(",")]
    print("images of a class | cosine to a member")
    for count in COUNTS:
        print(f"{count} | {mean(likeness(rows, labels, count, seed) for seed in seeds):.2f}")
    print("images of an update | share of a member's length in their space | of another image's")
    for count in IMAGES:
        inside, outside = zip(*(membership(rows, count, seed) for seed in seeds), strict=True)
        print(f"{count} | {mean(inside):.2f} | {mean(outside):.2f}")


def likeness(rows: np.ndarray, labels: np.ndarray, count: int, seed: int) -> float:
    """Mean over classes and members."""
    rng, found = np.random.default_rng(seed), []
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        own, others = rows[order[:count]], rows[order[count:]]
        centre = others.mean(0)
        shown = own.mean(0) - centre
        found += [float(shown @ (row - centre) / np.linalg.norm(shown) / np.linalg.norm(row - centre)) for row in own]
    return mean(found)


def membership(rows: np.ndarray, count: int, seed: int) -> tuple[float, float]:
    """Shares of lengths in the space that so many images span."""
    order = np.random.default_rng(seed).permutation(len(rows))
    own, others = rows[order[:count]], rows[order[count:]]
    basis = np.linalg.svd(own, full_matrices=False)[2]

    def share(part: np.ndarray) -> float:
        return float(np.mean(np.linalg.norm(part @ basis.T, axis=1) / np.linalg.norm(part, axis=1)))

    return share(own), share(others)


if __name__ == "__main__":
    main()
