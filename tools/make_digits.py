"""Write edge_sel/data/assets/digits.npz from scikit-learn's copy of the UCI handwritten digits.

    python tools/make_digits.py [FILE]

Credit and licence: edge_sel/data/assets/CREDITS.md. Needs scikit-learn (the ``dev`` extra).
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

SIZES = {"pretrain": 900, "field": 500, "test": 397}
DEFAULT = Path(__file__).parent.parent / "edge_sel" / "data" / "assets" / "digits.npz"


def stratified_parts(labels, rng):
    """The part number of each sample: every class is spread over the parts in proportion, in random order."""
    rank = np.empty(len(labels))
    for digit in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == digit))
        rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
    part = np.empty(len(labels), dtype=np.uint8)
    part[np.argsort(rank)] = np.repeat(np.arange(len(SIZES)), list(SIZES.values()))
    return part


def main():
    digits = load_digits()
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    np.savez_compressed(
        target,
        images=digits.images.astype(np.uint8),
        labels=digits.target.astype(np.uint8),
        part=stratified_parts(digits.target, np.random.default_rng(1998)),
    )
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
