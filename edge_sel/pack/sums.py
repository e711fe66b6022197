"""What the server's images told of its head: sums of their features, by which a device learns and forgets nothing.

Sums of several places add up exactly (Fanì et al. 2024, Fed3R), so the server is one more device. They stand in the
pack as a few rows that make the same sums, ``sel.feature_sums.Prior``, with a few images' features by which a device
sees what a head still knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import read_tensors, tensor_bytes
from edge_sel.errors import PackError
from edge_sel.sel.feature_sums import Examples, Prior, Standard, standard_of, standardised, summarise

SUMS = "sums.safetensors"
MOST_BYTES = 1 << 20
"""Of the rows that make the sums."""
MOST_ROWS = 128
"""With 256 rows the accuracy on paintings was the same; with 32 it was half a point less."""
EXAMPLES, EXAMPLES_OF_A_CLASS = 64, 8
"""Features of images, at most."""
_TENSORS = {"mean": 1, "scale": 1, "rows": 2, "targets": 2, "known": 1, "examples": 2, "labels": 1}
"""Of the file, by their number of dimensions."""


class ServerSums(NamedTuple):
    """Of the features that a pack's head takes."""

    standard: Standard
    prior: Prior
    examples: Examples

    def with_classes(self, classes: int) -> ServerSums:
        """For a head with classes of the device's own, of which the server knows nothing."""
        more = classes - len(self.prior.known)
        prior = self.prior._replace(
            targets=np.pad(self.prior.targets, ((0, 0), (0, more))), known=np.pad(self.prior.known, (0, more))
        )
        return self._replace(prior=prior)

    def example_features(self) -> np.ndarray:
        """float32[M, F], as the network made them."""
        scale = np.where(self.standard.scale == 0, 1.0, self.standard.scale)
        features: np.ndarray = (self.examples.features / scale + self.standard.mean).astype(np.float32)
        return features


def make_sums(
    features: np.ndarray, labels: np.ndarray, classes: int, groups: Sequence[int], rng: np.random.Generator
) -> ServerSums | None:
    """Of features [N, F]; None where so few rows as a pack may hold cannot tell the classes apart.

    Args:
        features: of the server's images.
        labels: int[N].
        classes: C.
        groups: see ``sel.ridge.fit_head``.
        rng: chooses the examples.
    """
    rank = min(MOST_ROWS, MOST_BYTES // (2 * (features.shape[1] + 1)))
    if rank < classes:
        return None
    standard = Standard(*(part.astype(np.float32) for part in standard_of(features, groups)))
    values = standardised(features, standard)
    shown = _examples(labels, classes, rng)
    rest = np.setdiff1d(np.arange(len(labels)), shown)
    prior = summarise(values[rest], labels[rest], classes, rank)
    rows, targets = prior.rows.astype(np.float16), prior.targets.astype(np.float32)
    examples = Examples(values[shown].astype(np.float16), labels[shown])
    return ServerSums(standard, Prior(rows, targets, prior.known), examples)


def _examples(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Some of each class, but never more than a fifth of it: the sums lack them."""
    each = max(1, min(EXAMPLES_OF_A_CLASS, EXAMPLES // classes))
    chosen = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(members)[: min(each, len(members) // 5)])
    return np.sort(np.concatenate(chosen))[:EXAMPLES]


def write_sums(sums: ServerSums) -> bytes:
    """The content of the pack's file."""
    standard, prior, examples = sums
    return tensor_bytes({
        "mean": standard.mean, "scale": standard.scale, "rows": prior.rows, "targets": prior.targets,
        "known": prior.known.astype(np.uint8), "examples": examples.features,
        "labels": examples.labels.astype(np.int64),
    })  # fmt: skip


def read_sums(content: bytes, features: int, classes: int, where: object = None) -> ServerSums:
    """The sums of the pack's file.

    Raises:
        PackError: they are of another number of features or classes. Whether they are finite has been seen.
    """
    try:
        stored = read_tensors(content)
        if {name: array.ndim for name, array in stored.items()} != _TENSORS:
            raise ValueError("it holds other tensors")
        rows, examples, labels = stored["rows"], stored["examples"], stored["labels"]
        shapes = (stored["mean"].shape, stored["scale"].shape, rows.shape[1:], examples.shape[1:])
        if shapes != ((features,), (features,), (features + 1,), (features,)):
            raise ValueError("it is of other features")
        if stored["targets"].shape != (len(rows), classes) or stored["known"].shape != (classes,):
            raise ValueError("it is of other classes")
        if len(labels) != len(examples) or labels.dtype.kind != "i" or not set(labels.tolist()) <= {*range(classes)}:
            raise ValueError("its examples are of other classes")
        if not 1 <= len(rows) <= MOST_ROWS or len(labels) > EXAMPLES or not stored["known"].any():
            raise ValueError("it holds too little or too much")
    except (ValueError, KeyError) as error:
        raise PackError(f"{SUMS} cannot be read ({error})", where=where, fix="copy the pack again") from error
    known = stored["known"].astype(bool)
    return ServerSums(
        Standard(stored["mean"], stored["scale"]), Prior(rows, stored["targets"], known), Examples(examples, labels)
    )
