"""What a merge costs a server as devices are added: processor seconds and memory, of statistics in their files.

    python tools/fleet_scaling.py --work DIR --pack PACK [--devices 10,30,100]

Every device has 200 made images whose features lie about those of its own classes, of the size that the pack's are.
Each count is merged by a process of its own, with a key for every device, as `edge-sel fleet merge` does.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np

from edge_sel.engines.ort import OrtEngine
from edge_sel.fleet.header import Origin
from edge_sel.fleet.merge import merge_updates
from edge_sel.fleet.statistics import make_statistics, require_sums
from edge_sel.fleet.update import open_updates, write_update
from edge_sel.pack.reader import open_pack
from edge_sel.pack.signatures import make_key, read_private_key, read_trusted_keys

IMAGES = 200


def main() -> None:
    """Make the updates, merge more and more of them, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--devices", default="10,30,100")
    parser.add_argument("--merge", type=int, help="merge so many and print one row")
    given = parser.parse_args()
    if given.merge is not None:
        print(merge(given.work, given.pack, given.merge))
        return
    counts = [int(count) for count in given.devices.split(",")]
    given.work.mkdir(parents=True, exist_ok=True)
    make(given.work, given.pack, max(counts))
    print("| devices | MB received | CPU s | CPU s a device | peak memory, MB |\n|---|---|---|---|---|")
    for count in counts:
        command = [
            sys.executable,
            __file__,
            "--work",
            str(given.work),
            "--pack",
            str(given.pack),
            "--merge",
            str(count),
        ]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


def make(work: Path, pack_path: Path, count: int) -> None:
    """Signed updates of ``count`` devices; those that are there stay."""
    pack = open_pack(pack_path)
    examples, classes = require_sums(pack).example_features().astype(np.float32), pack.manifest.model.classes
    known = require_sums(pack).examples.labels
    for device in range(count):
        if (work / f"{device}.update").exists():
            continue
        rng = np.random.default_rng(device)
        own = rng.choice(len(classes), 3, replace=False)
        rows = rng.choice(np.flatnonzero(np.isin(known, own)), IMAGES)
        features = examples[rows] + 0.5 * examples.std(0) * rng.standard_normal((IMAGES, examples.shape[1]), np.float32)
        make_key(work / f"{device}.key", work / f"{device}.pub")
        content = make_statistics(pack, features, known[rows], classes, Origin(f"{device}"))
        write_update(work / f"{device}.update", content, read_private_key(work / f"{device}.key"))


def merge(work: Path, pack_path: Path, count: int) -> str:
    """A row of the table."""
    pack = open_pack(pack_path)
    paths = [work / f"{device}.update" for device in range(count)]
    keys = read_trusted_keys([path.with_suffix(".pub") for path in paths])
    began_s = time.process_time()
    good, refused = open_updates(paths, pack, keys)
    merged = merge_updates(pack, good, OrtEngine(1))
    spent_s = time.process_time() - began_s
    if refused or len(merged.devices) + len(merged.left_out) != count:
        raise RuntimeError(str(refused))
    size, peak = sum(head.bytes for head in good.heads()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"| {count} | {size / 1e6:.1f} | {spent_s:.1f} | {spent_s / count:.3f} | {peak:.0f} |"


if __name__ == "__main__":
    main()
