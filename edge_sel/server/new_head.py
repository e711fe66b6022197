"""Fit a new head to the calibration images, for a model that was trained on other classes."""

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
from edge_sel.sel.ridge import fit_head

MAX_IMAGES = 5000
_CHUNK = 64


class NewHead(NamedTuple):
    """The head's weight and bias by name, the images [N] it was fitted to, and their logits under it.

    The logits [N, C] of each image are those of the head that was fitted without it.
    """

    weights: Arrays
    rows: np.ndarray
    left_out: np.ndarray


def fit_new_head(pack: Pack, images: ImageSet, engine: Engine, rng: np.random.Generator) -> NewHead:
    """Ridge regression from zero weights, see ``sel.ridge``.

    Raises:
        GraphError: the model's head is not one linear layer on a vector of features.
    """
    if RIDGE not in pack.plan_names:
        raise GraphError(
            "a new head is fitted only where it is one linear layer on a vector of features",
            fix="train the head on these classes first, and give the weights with --weights",
        )
    model, head = pack.manifest.model, pack.linear_head
    prefix = engine.prefix(pack, RIDGE, pack.weights())
    assert prefix is not None
    rows = np.sort(rng.permutation(len(images))[:MAX_IMAGES])
    chunks = np.array_split(rows, -(-len(rows) // _CHUNK))
    features = np.concatenate([prefix(normalise(images.read(chunk), model.mean, model.std)) for chunk in chunks])
    old = pack.weights()
    weight, bias = (np.zeros_like(part) for part in head.joined(old))
    fit = fit_head(features, images.labels[rows], weight, bias)
    fitted = head.parted(fit.weight.astype(np.float32), fit.bias.astype(np.float32), old)
    return NewHead(fitted, rows, fit.left_out.astype(np.float32))
