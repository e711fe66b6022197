"""What the server's images tell of the head: a new one in closed form, and the sums of their features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.engines.base import Engine
from edge_sel.errors import GraphError
from edge_sel.pack.manifest import RIDGE
from edge_sel.pack.reader import Pack
from edge_sel.pack.sums import ServerSums, make_sums
from edge_sel.sel.ridge import fit_head

MAX_IMAGES = 5000
_CHUNK = 64


class HeadFeatures(NamedTuple):
    """What the head takes of some images, float32[N, F], as a device would keep it; ``rows`` [N] are their indices."""

    rows: np.ndarray
    features: np.ndarray


class NewHead(NamedTuple):
    """The head's weight and bias by name, the images [N] it was fitted to, and their logits under it.

    The logits [N, C] of each image are those of the head that was fitted without it.
    """

    weights: Arrays
    rows: np.ndarray
    left_out: np.ndarray


def head_features(pack: Pack, images: ImageSet, engine: Engine, rng: np.random.Generator) -> HeadFeatures | None:
    """Of at most ``MAX_IMAGES``; None where the head is not one linear layer on a vector of features."""
    if RIDGE not in pack.plan_names:
        return None
    model = pack.manifest.model
    prefix = engine.prefix(pack, RIDGE, pack.weights())
    assert prefix is not None
    rows = np.sort(rng.permutation(len(images))[:MAX_IMAGES])
    chunks = np.array_split(rows, -(-len(rows) // _CHUNK))
    features = [prefix(normalise(images.read(chunk), model.mean, model.std)) for chunk in chunks]
    return HeadFeatures(rows, np.concatenate(features))


def fit_new_head(pack: Pack, images: ImageSet, found: HeadFeatures | None) -> NewHead:
    """Ridge regression, see ``sel.ridge``.

    Raises:
        GraphError: the model's head is not one linear layer on a vector of features.
    """
    if found is None:
        raise GraphError(
            "a new head is fitted only where it is one linear layer on a vector of features",
            fix="train the head on these classes first, and give the weights with --weights",
        )
    model, head, old = pack.manifest.model, pack.linear_head, pack.weights()
    groups = model.feature_groups(found.features.shape[1])
    fit = fit_head(
        found.features, images.labels[found.rows], len(model.classes), groups=groups, shallow=groups[0]
    )  # fmt: skip
    fitted = head.parted(fit.weight.astype(np.float32), fit.bias.astype(np.float32), old)
    return NewHead(fitted, found.rows, fit.left_out.astype(np.float32))


def sums_of(pack: Pack, images: ImageSet, found: HeadFeatures, rng: np.random.Generator) -> ServerSums | None:
    """What a device adds its own sums to; see ``make_sums``."""
    model, labels = pack.manifest.model, images.labels[found.rows]
    groups = model.feature_groups(found.features.shape[1])
    return make_sums(found.features, labels, len(model.classes), groups, rng)
