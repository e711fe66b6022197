"""Rounds that follow each other on paintings: 10, 20, then 40 labelled images a class, each folder with the one before.

    zoo/bin/python tools/photo_rounds.py --work DIR --photos PHOTOS [--seeds 0,1,2]

WORK and PHOTOS as in ``photo_benchmark.py``, which makes the server's pack. ``from`` begins each round with the model
in service, ``pack`` with the server's. The plan is ``closed_form``. Accuracies are of the test paintings; whether a
round ships was decided by other images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import photo_benchmark

import edge_sel

SIZES = (10, 20, 40)


def main() -> None:
    """Print a line a round, then the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    pack = photo_benchmark.server_pack("paintings", given)
    asked: dict[str, Any] = {"threads": 1, "plan": "closed_form", "feature_store": str(given.work / "features")}
    found: dict[tuple[str, int], list[float]] = {}
    ships = {"from": 0, "pack": 0}
    for seed in map(int, given.seeds.split(",")):
        service: edge_sel.Round | None = None
        for each in SIZES:
            images, test = photo_benchmark.device_images("paintings", each, seed, given)
            for name, weights in (("pack", None), ("from", service)):
                made = edge_sel.train_round(pack, images, weights=weights, test=test, seed=seed, **asked)
                found.setdefault((name, each), []).append(made.accuracy_after or 0.0)
                ships[name] += made.shipped
                text = f"{made.accuracy_before:.3f} -> {made.accuracy_after:.3f}, ships: {made.shipped}"
                print(f"seed {seed}, {each} a class, {name}: {text}", flush=True)
            service = made
    for (name, each), values in sorted(found.items()):
        print(f"{name}, {each} a class: {fmean(values):.3f} (n = {len(values)})")
    print(", ".join(f"{name}: {count} ship" for name, count in ships.items()))


if __name__ == "__main__":
    main()
