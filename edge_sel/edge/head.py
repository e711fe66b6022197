"""Make room in the head for classes that the pack does not know."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_sel.pack.manifest import ModelInfo
from edge_sel.pack.reader import Pack

START = 0.1
"""Of a new class's logit where ReLU makes the logits."""


def extend_head(weights: Mapping[str, np.ndarray], model: ModelInfo, classes: int) -> dict[str, np.ndarray]:
    """The weights with a head of ``classes`` logits; new rows are the mean of the known ones.

    The mean row starts a new class at the average logit: it neither wins nor loses everywhere before it was trained.
    Behind ReLU the average logit is mostly below 0, where nothing is learnt; the new row makes ``START`` of any image.

    Args:
        weights: of a whole model.
        model: whose C classes and whose head they are: weights [C, F] or [C, F, 1, 1], biases [C].
        classes: how many logits are wanted, at least C.
    """
    extended = dict(weights)
    for name in model.head:
        known = weights[name]
        mean = known.mean(0, keepdims=True)
        if model.rectified:
            mean = np.full_like(mean, START if known.ndim == 1 else 0.0)
        new = np.repeat(mean, classes - len(known), axis=0)
        extended[name] = np.concatenate([known, new.astype(known.dtype)])
    return extended


def changed_in(weights: Mapping[str, np.ndarray], pack: Pack) -> set[str]:
    """Which of the body's weights and statistics are no longer the pack's."""
    head = pack.manifest.model.head
    return {n for n, v in pack.weights().items() if n not in head and not np.array_equal(weights[n], v)}


def original_weights(pack: Pack, classes: int) -> dict[str, np.ndarray]:
    """The pack's weights, with room for the device's own classes."""
    return extend_head(pack.weights(), pack.manifest.model, classes)
