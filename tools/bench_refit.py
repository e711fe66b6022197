"""Seconds that a head in closed form takes for one label more, on one thread.

    python tools/bench_refit.py [--images 1000] [--features 3968] [--classes 7] [--repeats 9]

Features are random: times do not depend on their values. The server's sums have 128 rows, as in a pack. ``search``
chooses strength, prior and depth anew; ``like`` takes the choices of the fit before, as after each label.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np

from edge_sel.pack.sums import MOST_ROWS
from edge_sel.sel.feature_sums import standard_of, standardised, summarise
from edge_sel.sel.ridge import fit_head


def main() -> None:
    """Print medians of processor seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 1000), ("features", 3968), ("classes", 7), ("repeats", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, given.classes, 2 * given.images)
    centres = rng.standard_normal((given.classes, given.features))
    values = (centres[labels] + 4 * rng.standard_normal((len(labels), given.features))).astype(np.float32)
    server, device = slice(given.images), slice(given.images, None)
    standard = standard_of(values[server])
    prior = summarise(standardised(values[server], standard), labels[server], given.classes, MOST_ROWS)
    features, own = values[device], labels[device]
    taken: dict[str, list[float]] = {"search": [], "like": []}
    like = None
    for _ in range(given.repeats):
        for name in taken:
            began_s = time.process_time()
            found = fit_head(
                features, own, given.classes, standard=standard, prior=prior, like=like if name == "like" else None
            )
            taken[name].append(time.process_time() - began_s)
            like = like or found
    for name, seconds in taken.items():
        print(f"{name}: {median(seconds):.3f} CPU s (median of {len(seconds)})")


if __name__ == "__main__":
    main()
