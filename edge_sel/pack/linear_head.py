"""The layers of a head as the one linear layer that a closed form is fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import Arrays


class LinearHead(NamedTuple):
    """Logits are ``scale`` times the sum of ``W φ + b`` over the layers, each of its own part of the features φ.

    Attributes:
        names: weight [C, F] or [C, F, 1, 1] and bias [C] of each layer, one after the other.
        scale: ½ for a mean of two layers, 1 for a single one.
    """

    names: tuple[str, ...]
    scale: float = 1.0

    def joined(self, weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Weight [C, ΣF] and bias [C] of the one layer that makes the same logits."""
        parts = [weights[name].reshape(len(weights[name]), -1) for name in self.names[::2]]
        bias = np.sum([weights[name] for name in self.names[1::2]], axis=0)
        return np.concatenate(parts, 1) * np.float32(self.scale), bias * np.float32(self.scale)

    def parted(self, weight: np.ndarray, bias: np.ndarray, like: Mapping[str, np.ndarray]) -> Arrays:
        """Tensors by name, shaped as those of ``like``, that make the logits of the one layer."""
        starts = np.cumsum([0, *(like[name][0].size for name in self.names[::2])])
        scale, layers = np.float32(self.scale), np.float32(len(self.names) // 2)
        parts = {}
        for name, start, end in zip(self.names[::2], starts[:-1], starts[1:], strict=True):
            parts[name] = np.ascontiguousarray(weight[:, start:end] / scale).reshape(len(weight), *like[name].shape[1:])
        return {**parts, **dict.fromkeys(self.names[1::2], bias / (scale * layers))}
