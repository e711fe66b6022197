"""What a server makes of the updates of its devices: one model, of statistics in one pass over their sums.

The pack's own sums are one more device, so nothing that the server knew is lost. A device counts for a bounded number
of images, and one whose labels the others' head predicts worse than who says nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import normalise
from edge_sel.edge.progress import original_weights
from edge_sel.engines.base import Engine
from edge_sel.errors import BadInputError
from edge_sel.fleet.delta import Rule, merge_deltas
from edge_sel.fleet.header import LEAST_OF_CLASS
from edge_sel.fleet.statistics import noise_of, projection_of, require_sums
from edge_sel.fleet.update import Update, UpdateFiles
from edge_sel.pack.reader import Pack
from edge_sel.sel.calibration import best_scales
from edge_sel.sel.feature_sums import CONSTANT
from edge_sel.sel.federated import DeviceSums, add_sums, solve_at, solve_from, solve_sums, unit_of

MOST_WEIGHT = 4.0
"""A device counts for so many times the images of the median device, at most."""
MOST_LEFT_OUT = 1 / 3
"""Share of the devices that may be left out."""
NONSENSE, ODD = 0.8, 1.6
"""A device is left out if the error of the others' head on its images is more than this, where 1 is the error of who
says nothing, and more than so many times that of the median device."""
NOISE = 0.01
"""Standard deviation of noise in a mean over all images, from which on ``PRIVATE`` grows."""
SERVER_IMAGES = 10.0
"""Of each class that the server counts for, at least."""
SERVER_SHARE = 1.0
"""Else it counts for this share of the images that the devices have of a class on average."""
ALONE, PRIVATE = (0.05, 0.3, 2.0, 10.0, 100.0), 100.0
"""Strengths of regularisation: of the server's own head, the usual one first; of what moves from it by noisy sums."""


class Merged(NamedTuple):
    """What all devices together make of a pack, and how it came about."""

    kind: str
    weights: Arrays
    """Every one; the head has rows for new classes."""
    classes: tuple[str, ...]
    devices: tuple[str, ...]
    """Fingerprints of those that count."""
    left_out: tuple[str, ...]
    images: int
    right_before: int
    """Of the server's images that are in no sums, by the pack's model; ``right`` by the new one, of ``judged``."""
    right: int
    judged: int
    strength: float | None = None
    """Of regularisation; of kind ``statistics``."""
    error_before: float | None = None
    """Mean squared error on the devices' images, by a head of the server's sums and the shares of the classes alone."""
    error: float | None = None
    """The same that is expected of the devices' head on further images of theirs, by generalised cross-validation."""
    velocity: Arrays = {}  # noqa: RUF012  (nobody writes to it)
    """For the next round, of server momentum."""

    def as_dict(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "kind": self.kind, "classes": list(self.classes), "strength": self.strength, "devices": list(self.devices),
            "left_out": list(self.left_out), "images": self.images,
            "server": {"right_before": self.right_before, "right": self.right, "images": self.judged},
            "on_devices": {"error_before": self.error_before, "error": self.error},
        }  # fmt: skip

    def objection(self, forget: float) -> str | None:
        """Why it is not to be used; None if nothing is known against it.

        Args:
            forget: share of what the pack's model knew of the server's images that may be lost.
        """
        if self.right < (1 - forget) * self.right_before:
            return f"it knows {self.right} of the server's {self.judged} images, the pack's model {self.right_before}"
        if self.error is not None and self.error_before is not None and self.error >= self.error_before:
            return f"on the devices' images its error is {self.error:.3f}, without them {self.error_before:.3f}"
        return None


def merge_updates(
    pack: Pack, updates: Sequence[Update], engine: Engine, *, robust: bool = True, server: bool = True,
    rule: Rule = "mean", velocity: Arrays | None = None,
) -> Merged:  # fmt: skip
    """One model of all updates.

    Args:
        pack: that they are of.
        updates: of different devices, of one kind; ``UpdateFiles`` are read one at a time.
        engine: to look at the server's images.
        robust: of statistics, whether devices are bounded and may be left out.
        server: of statistics, whether the pack's own sums count.
        rule: of deltas.
        velocity: of the round before, for the rule ``momentum``.

    Raises:
        BadInputError: there are none, or they are of several kinds or plans.
    """
    if not updates:
        raise BadInputError("no update can be used", fix="collect more of them")
    heads = updates.heads() if isinstance(updates, UpdateFiles) else updates
    kinds = {head.kind if head.plan is None else f"delta of {head.plan}" for head in heads}
    if len(kinds) > 1:
        raise BadInputError("updates of several kinds", where=", ".join(sorted(kinds)), fix="merge them apart")
    if heads[0].kind == "statistics":
        return _merge_statistics(pack, updates, heads, robust=robust, server=server)
    return _merge_deltas(pack, list(updates), engine, rule, velocity)


def new_pack(pack: Pack, merged: Merged) -> Pack:
    """The pack with the new weights and classes."""
    return pack.with_weights(merged.weights, merged.classes, f"{len(merged.devices)} devices")


def _merge_deltas(
    pack: Pack, updates: Sequence[Update], engine: Engine, rule: Rule, velocity: Arrays | None
) -> Merged:  # fmt: skip
    deltas, old = [update.delta for update in updates if update.delta is not None], pack.weights()
    weights, moved, chosen = merge_deltas(old, deltas, [update.images for update in updates], rule, velocity)
    anchors, model = pack.anchors, pack.manifest.model
    before = after = judged = 0
    if anchors is not None:
        images = normalise(anchors.images.read(np.arange(len(anchors.images))), model.mean, model.std)
        judged, labels = len(images), anchors.images.labels
        before, after = (int((engine.predictor(pack, w)(images).argmax(1) == labels).sum()) for w in (old, weights))
    return Merged(
        "delta", weights, model.classes, tuple(updates[at].device for at in chosen),
        tuple(update.device for at, update in enumerate(updates) if at not in chosen),
        sum(updates[at].images for at in chosen), before, after, judged, velocity=moved,
    )  # fmt: skip


def _merge_statistics(
    pack: Pack, updates: Sequence[Update], heads: Sequence[Update], *, robust: bool, server: bool
) -> Merged:  # fmt: skip
    classes = [*pack.manifest.model.classes]
    for head in heads:
        classes += [name for name in head.classes if name not in classes]
    most = MOST_WEIGHT * float(np.median([head.images for head in heads])) if robust else np.inf

    def part(one: int) -> DeviceSums:
        return _aligned(updates[one], classes, min(1.0, most / heads[one].images))

    judge = _Judge(pack, len(classes), server=server)
    chosen = list(range(len(heads)))
    total = add_sums(part(one) for one in chosen)
    if any(head.privacy for head in heads):
        moved = judge.moved(total, sqrt(sum(noise_of(pack, head.privacy) ** 2 for head in heads)))
        return _merged_head(pack, judge, moved, heads, classes, chosen)
    found = solve_sums(total)
    while robust and len(chosen) > max(2, (1 - MOST_LEFT_OUT) * len(heads)):
        errors = [_least_error(judge, total, part(one), found.strength) for one in chosen]
        worst = int(np.argmax(errors))
        if not errors[worst] > max(NONSENSE, ODD * float(np.median(errors))):
            break
        total = _less(total, part(chosen.pop(worst)))
        found = solve_sums(total)
    merged = _merged_head(pack, judge, judge.solve(total, found.strength), heads, classes, chosen)
    return merged._replace(strength=found.strength, error_before=judge.error_alone(total), error=found.score)


def _merged_head(
    pack: Pack, judge: _Judge, coefficients: np.ndarray, heads: Sequence[Update], classes: Sequence[str],
    chosen: Sequence[int],
) -> Merged:  # fmt: skip
    weight, bias = judge.head(coefficients)
    start = original_weights(pack, len(classes))
    before, after = (judge.right(*head) for head in (pack.linear_head.joined(start), (weight, bias)))
    head = pack.linear_head.parted(weight.astype(np.float32), bias.astype(np.float32), start)
    return Merged(
        "statistics", {**start, **head}, tuple(classes), tuple(heads[one].device for one in chosen),
        tuple(update.device for one, update in enumerate(heads) if one not in chosen),
        sum(heads[one].images for one in chosen), before, after, len(judge.labels),
    )  # fmt: skip


def _aligned(update: Update, classes: Sequence[str], factor: float) -> DeviceSums:
    """Its sums with the columns of all classes, scaled."""
    sums = update.sums
    assert sums is not None
    places = [classes.index(name) for name in update.classes]
    counts, right = np.zeros(len(classes)), np.zeros((len(sums.gram), len(classes)))
    counts[places], right[:, places] = sums.counts, sums.right
    return DeviceSums(factor * counts, factor * sums.gram, factor * right)


def _less(total: DeviceSums, part: DeviceSums) -> DeviceSums:
    """Without one device."""
    return DeviceSums(*(whole - own for whole, own in zip(total, part, strict=True)))


def _least_error(judge: _Judge, total: DeviceSums, part: DeviceSums, strength: float) -> float:
    """Mean squared error on a device's images by the head of all others, or by the server's alone, if that is less.

    Of classes that nobody else has, the others' head says nothing good; the server's may know them.
    """
    rest = _less(total, part)
    if ((part.counts > 0) & (rest.counts < LEAST_OF_CLASS) & ~judge.known).any():
        return 0.0  # nobody else has ever seen one of its classes
    return min(_error_on(part, judge.solve(rest, strength)), _error_on(part, judge.best_alone(rest)))


def _error_on(part: DeviceSums, coefficients: np.ndarray) -> float:
    """Mean squared error on what a device's sums are of.

    Formula: ``(n - 2 tr WᵀB + tr WᵀAW) / n``; 1 is the error of who says nothing of any image.
    """
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
        targets = sums.prior.targets.astype(np.float64)
        gram, right = self._rows.T @ self._rows, self._rows.T @ targets
        self._own = DeviceSums(sums.prior.known.astype(np.float64), gram, right)
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
        mass = max(SERVER_SHARE * float(devices.counts.sum()) / len(self.known), SERVER_IMAGES)
        own = DeviceSums(*(mass * part for part in self._own))
        return np.asarray(solve_at(add_sums([devices, own]), penalty))

    def moved(self, devices: DeviceSums, noise: float) -> np.ndarray:
        """The server's own head, moved a little towards the devices' sums by class; ``ΦᵀΦ`` is taken from the server.

        These sums are noisy, and the devices' features may have another ``ΦᵀΦ``: strong regularisation bears both, and
        it grows with the variance of the noise in a mean.
        """
        count = max(float(devices.counts.sum()), 1.0)
        strength = PRIVATE * max(1.0, (noise / count / NOISE) ** 2)
        gram = count / max(float(self._own.counts.sum()), 1.0) * self._own.gram
        return np.asarray(solve_from(DeviceSums(devices.counts, gram, devices.right), self._alone[0], strength))

    @cached_property
    def _alone(self) -> list[np.ndarray]:
        """Coefficients of the server's sums alone, by strength."""
        unit = unit_of(self._own)
        return [np.asarray(solve_at(self._own, strength * unit)) for strength in ALONE]

    def best_alone(self, devices: DeviceSums) -> np.ndarray:
        """Of these the ones of the strength that suits all devices together best."""
        return min(self._alone, key=lambda coefficients: _error_on(devices, coefficients))

    def error_alone(self, devices: DeviceSums) -> float:
        """Least mean squared error on the devices' images by the server's sums alone, at any strength.

        With the best constants for each class too, as who knows nothing but the shares of the classes.
        """
        count, found = max(float(devices.counts.sum()), 1e-9), []
        for coefficients in self._alone:
            missing = (devices.counts - devices.gram[-1] @ coefficients / CONSTANT) / count
            found.append(_error_on(devices, coefficients) - float((missing**2).sum()))
        return min(found)

    def right(self, weight: np.ndarray, bias: np.ndarray) -> int:
        """How many of the server's images a head has right."""
        return int((self.features @ weight.T + bias).argmax(1).__eq__(self.labels).sum())

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
