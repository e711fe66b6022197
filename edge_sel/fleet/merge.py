"""What a server makes of the updates of its devices: one head, in one pass over their sums.

The pack's own sums are one more device, so nothing that the server knew is lost. A device counts for a bounded number
of images, and one whose sums make the server's own images worse is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edge_sel.edge.progress import original_weights
from edge_sel.errors import BadInputError
from edge_sel.fleet.update import Update, projection_of, require_sums
from edge_sel.pack.reader import Pack
from edge_sel.sel.calibration import best_scales
from edge_sel.sel.embarrassment import cross_entropy
from edge_sel.sel.feature_sums import CONSTANT
from edge_sel.sel.federated import DeviceSums, add_sums, solve_at, solve_sums, unit_of

MOST_WEIGHT = 4.0
"""A device counts for so many times the images of the median device, at most."""
MOST_LEFT_OUT = 1 / 3
"""Share of the devices that may be left out."""
WORSE, HARM = 0.1, 0.05
"""Share of the loss on the server's images, and nats, by which it must be less without a device that is left out."""
SERVER_IMAGES = 10.0
"""Of each class that the server counts for, at least."""
SERVER_SHARE = 0.3
"""Else it counts for this share of the images that the devices have of a class on average."""


class Merged(NamedTuple):
    """The new head, and how it came about."""

    weight: np.ndarray
    """float32 [C, F]."""
    bias: np.ndarray
    """float32 [C]."""
    classes: tuple[str, ...]
    strength: float
    devices: tuple[str, ...]
    """Fingerprints of those that count."""
    left_out: tuple[str, ...]
    images: int
    right_before: int
    """Of the server's images that are not in its sums, by the pack's head; ``right`` by the new one, of ``judged``."""
    right: int
    judged: int

    def told(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "classes": list(self.classes), "strength": self.strength, "devices": list(self.devices),
            "left_out": list(self.left_out), "images": self.images,
            "server": {"right_before": self.right_before, "right": self.right, "images": self.judged},
        }  # fmt: skip


def merge_updates(pack: Pack, updates: Sequence[Update], *, robust: bool = True, server: bool = True) -> Merged:
    """One head of all updates.

    Args:
        pack: that they are of.
        updates: of different devices.
        robust: whether devices are bounded and may be left out.
        server: whether the pack's own sums count.

    Raises:
        BadInputError: there are none.
    """
    if not updates:
        raise BadInputError("no update can be used", fix="collect more of them")
    classes = [*pack.manifest.model.classes]
    for update in updates:
        classes += [name for name in update.classes if name not in classes]
    most = MOST_WEIGHT * float(np.median([update.images for update in updates])) if robust else np.inf
    parts = [_aligned(update, classes, min(1.0, most / update.images)) for update in updates]
    judge = _Judge(pack, len(classes), server=server)
    chosen = list(range(len(parts)))
    total = add_sums(parts)
    found = solve_sums(total)
    solution = judge.solve(total, found.strength)
    while robust and len(chosen) > max(1, (1 - MOST_LEFT_OUT) * len(parts)):
        loss = judge.loss(solution)
        without = [judge.loss(judge.solve(_less(total, parts[one]), found.strength)) for one in chosen]
        worst = int(np.argmin(without))
        if not without[worst] < min((1 - WORSE) * loss, loss - HARM):
            break
        total = _less(total, parts[chosen.pop(worst)])
        found = solve_sums(total)
        solution = judge.solve(total, found.strength)
    weight, bias = judge.head(solution)
    labels = judge.labels
    old = pack.linear_head.joined(original_weights(pack, len(classes)))
    before, after = (int((judge.features @ w.T + b).argmax(1).__eq__(labels).sum()) for w, b in (old, (weight, bias)))
    return Merged(
        weight.astype(np.float32), bias.astype(np.float32), tuple(classes), found.strength,
        tuple(updates[one].device for one in chosen),
        tuple(update.device for one, update in enumerate(updates) if one not in chosen),
        sum(updates[one].images for one in chosen), before, after, len(labels),
    )  # fmt: skip


def new_pack(pack: Pack, merged: Merged) -> Pack:
    """The pack with the new head and its classes."""
    start = original_weights(pack, len(merged.classes))
    head = pack.linear_head.parted(merged.weight, merged.bias, start)
    return pack.with_weights({**start, **head}, merged.classes, f"{len(merged.devices)} devices")


def _aligned(update: Update, classes: Sequence[str], factor: float) -> DeviceSums:
    """Its sums with the columns of all classes, scaled."""
    places = [classes.index(name) for name in update.classes]
    counts, right = np.zeros(len(classes)), np.zeros((len(update.sums.gram), len(classes)))
    counts[places], right[:, places] = update.sums.counts, update.sums.right
    return DeviceSums(factor * counts, factor * update.sums.gram, factor * right)


def _less(total: DeviceSums, part: DeviceSums) -> DeviceSums:
    """Without one device."""
    return DeviceSums(*(whole - own for whole, own in zip(total, part, strict=True)))


class _Judge:
    """Adds the server, and looks at the server's own images."""

    def __init__(self, pack: Pack, classes: int, *, server: bool) -> None:
        self._sums = sums = require_sums(pack).with_classes(classes)
        self._projection, self._server = projection_of(pack), server
        rows = sums.prior.rows.astype(np.float64)
        self._rows = rows if self._projection is None else np.hstack([rows[:, :-1] @ self._projection, rows[:, -1:]])
        self.features = sums.example_features().astype(np.float64)
        self.labels = sums.examples.labels

    def solve(self, devices: DeviceSums, strength: float) -> np.ndarray:
        """The coefficients of the devices and the server, at a strength in units of the devices' sums.

        It was chosen by the devices alone: the server's rows stand for many images each, and none of these is left out
        by what generalised cross-validation counts.
        """
        penalty = strength * unit_of(devices)
        if not self._server:
            return np.asarray(solve_at(devices, penalty))
        known = self._sums.prior.known
        mass = max(SERVER_SHARE * float(devices.counts.sum()) / len(known), SERVER_IMAGES)
        targets = self._sums.prior.targets.astype(np.float64)
        own = DeviceSums(mass * known, mass * self._rows.T @ self._rows, mass * self._rows.T @ targets)
        return np.asarray(solve_at(add_sums([devices, own]), penalty))

    def head(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight float64 [C, F] and bias [C] for features as they are, at the temperature that suits the server's."""
        rows = coefficients[:-1]
        rows = rows if self._projection is None else self._projection @ rows
        mean, scale = (part.astype(np.float64) for part in self._sums.standard)
        weight = rows.T * scale
        bias = CONSTANT * coefficients[-1] - weight @ mean
        if not len(self.labels):
            return weight, bias
        logits = self.features @ weight.T + bias
        even = np.full(len(logits), 1 / len(logits))
        factor = best_scales(logits, self.labels, even, None, None).own
        return factor * weight, factor * bias

    def loss(self, coefficients: np.ndarray) -> float:
        """On the server's images, nats; 0 without any."""
        weight, bias = self.head(coefficients)
        return float(cross_entropy(self.features @ weight.T + bias, self.labels).mean()) if len(self.labels) else 0.0
