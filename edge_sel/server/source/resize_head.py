"""Change the number of a forward graph's classes: the values of its head are then still to be fitted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_sel.graphs.ir import Forward
from edge_sel.graphs.plans import head_names


def resize_head(forward: Forward, classes: int) -> Forward:
    """The graph with zeros for a head of ``classes`` logits; itself where it has so many."""
    head = head_names(forward)
    if all(len(forward.initializers[name]) == classes for name in head):
        return forward
    fresh = {name: np.zeros((classes, *forward.initializers[name].shape[1:]), np.float32) for name in head}
    shapes = {**forward.shapes, **{name: value.shape for name, value in fresh.items()}, forward.logits: (None, classes)}
    return replace(forward, initializers={**forward.initializers, **fresh}, shapes=shapes)
