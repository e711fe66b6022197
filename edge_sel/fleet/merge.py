"""What a server makes of the updates of its devices: one head, in one pass over their sums.

The pack's own sums are one more device, so nothing that the server knew is lost. A device counts for a bounded number
of images, and one whose labels the others' head predicts worse than who says nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edge_sel.edge.progress import original_weights
from edge_sel.errors import BadInputError
from edge_sel.fleet.update import LEAST_OF_CLASS, Update, projection_of, require_sums
from edge_sel.pack.reader import Pack
from edge_sel.sel.calibration import best_scales
from edge_sel.sel.feature_sums import CONSTANT
from edge_sel.sel.federated import DeviceSums, add_sums, solve_at, solve_sums, unit_of

MOST_WEIGHT = 4.0
"""A device counts for so many times the images of the median device, at most."""
MOST_LEFT_OUT = 1 / 3
"""Share of the devices that may be left out."""
NONSENSE, ODD = 0.8, 1.6
"""A device is left out if the error of the others' head on its images is more than this, where 1 is the error of who
says nothing, and more than so many times that of the median device."""
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
    while robust and len(chosen) > max(2, (1 - MOST_LEFT_OUT) * len(parts)):
        errors = [_error_without(judge, total, parts[one], found.strength) for one in chosen]
        worst = int(np.argmax(errors))
        if not errors[worst] > max(NONSENSE, ODD * float(np.median(errors))):
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


def _error_without(judge: _Judge, total: DeviceSums, part: DeviceSums, strength: float) -> float:
    """Mean squared error of the others' head on a device's images, as its sums tell it; 0 where it cannot be told.

    Formula: ``(n - 2 tr WᵀB + tr WᵀAW) / n``; 1 is the error of who says nothing of any image.
    """
    rest = _less(total, part)
    if ((part.counts > 0) & (rest.counts < LEAST_OF_CLASS) & ~judge.known).any():
        return 0.0  # nobody else has ever seen one of its classes
    coefficients = judge.solve(rest, strength)
    count = float(part.counts.sum())
    explained = 2 * float((coefficients * part.right).sum()) - float((coefficients * (part.gram @ coefficients)).sum())
    return (count - explained) / max(count, 1e-9)


class _Judge:
    """Adds the server, and looks at the server's own images."""

    def __init__(self, pack: Pack, classes: int, *, server: bool) -> None:
        self._sums = sums = require_sums(pack).with_classes(classes)
        self._projection, self._server = projection_of(pack), server
        self.known = sums.prior.known.astype(bool)
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
