"""Make room in the head for classes that the pack does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge_sel.pack.reader import Pack


def extend_head(weights: Mapping[str, np.ndarray], head: Sequence[str], classes: int) -> dict[str, np.ndarray]:
    """The weights with a head of ``classes`` logits; new rows are the mean of the known ones.

    The mean row starts a new class at the average logit: it neither wins nor loses everywhere before it was trained.

    Args:
        weights: the pack's weights.
        head: names of the head's weight [C, F] and bias [C].
        classes: how many logits are wanted, at least C.
    """
    extended = dict(weights)
    for name in head:
        known = weights[name]
        new = np.repeat(known.mean(0, keepdims=True), classes - len(known), axis=0)
        extended[name] = np.concatenate([known, new.astype(known.dtype)])
    return extended


def original_weights(pack: Pack, classes: int) -> dict[str, np.ndarray]:
    """The pack's weights, with room for the device's own classes."""
    return extend_head(pack.weights(), pack.manifest.model.head, classes)
