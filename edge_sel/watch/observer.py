"""What the model in service makes of an image: features, class, and how new it is; one forward pass for all three."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import NamedTuple

import numpy as np

from edge_sel.data.dataset import normalise
from edge_sel.data.images import UInt8Array
from edge_sel.edge.progress import changed_in
from edge_sel.engines.base import Backbone, Engine
from edge_sel.pack.plan_kinds import RIDGE
from edge_sel.pack.reader import Pack
from edge_sel.sel.design import NOISE, Known, known_of, predictive_variance, unit_features
from edge_sel.sel.embarrassment import log_softmax
from edge_sel.sel.feature_sums import Examples, Prior, Standard, standard_of, standardised, summarise

CHUNK = 4
"""Images per forward pass, at most: more of them are hardly faster."""
USUAL = 0.95
"""An image is new if it is newer than this share of the server's own."""
_LARGEST = float(np.finfo(np.float16).max)


class ServerView(NamedTuple):
    """What is known of the server's images, as features of the model in service."""

    standard: Standard
    prior: Prior
    seen: Examples
    """Images that are not in ``prior``; features are standardised."""


class Looked(NamedTuple):
    """At images [n]."""

    rows: np.ndarray
    """float16 [n, F], features."""
    labels: np.ndarray
    """int [n], the class that the model says."""
    probabilities: np.ndarray
    """float64 [n, C]."""


class Observer:
    """The model in service, loaded.

    Args:
        pack: with the weights of the model in service.
        number: of that model.
        engine: that computes.

    Attributes:
        computed_by: hash of what computes the features.
    """

    def __init__(self, pack: Pack, number: int, engine: Engine) -> None:
        self.pack, self.number, self.engine = pack, number, engine
        self.classes = pack.manifest.model.classes
        self.weights = pack.weights()
        self.head = pack.linear_head.joined(self.weights)
        self.computed_by = _digest(pack, self.weights)
        self.width = pack.head_features

    @cached_property
    def _backbone(self) -> Backbone:
        loaded = self.engine.backbone(self.pack, RIDGE, self.weights)
        assert loaded is not None  # ONNX Runtime has one for every plan whose head reads a vector
        return loaded

    def features(self, pixels: UInt8Array) -> np.ndarray:
        """float16 [n, F] of images uint8 [n, H, W, 3]."""
        model = self.pack.manifest.model
        parts = [
            self._backbone(normalise(pixels[start : start + CHUNK], model.mean, model.std))
            for start in range(0, len(pixels), CHUNK)
        ]
        features = np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)
        rounded: np.ndarray = np.clip(features, -_LARGEST, _LARGEST).astype(np.float16)
        return rounded

    def look(self, pixels: UInt8Array) -> Looked:
        """At images uint8 [n, H, W, 3]."""
        rows = self.features(pixels)
        probabilities = self.probabilities(rows)
        return Looked(rows, probabilities.argmax(1), probabilities)

    def probabilities(self, rows: np.ndarray, head: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """float64 [n, C] of features [n, F], by the head in service or another one."""
        made: np.ndarray = np.exp(log_softmax(self.logits(rows, head).astype(np.float64)))
        return made

    def logits(self, rows: np.ndarray, head: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """float32 [n, C]."""
        weight, bias = self.head if head is None else head
        with np.errstate(over="ignore", invalid="ignore"):
            found = rows.astype(np.float32) @ weight.T + bias
        made: np.ndarray = np.nan_to_num(found, nan=0.0, posinf=1e30, neginf=-1e30)
        return made

    def units(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n, F + 1], as ``sel.design`` takes them; what is no number counts as usual."""
        rows = np.where(np.isfinite(rows), rows.astype(np.float64), self.server.standard.mean)
        units: np.ndarray = unit_features(rows, self.server.standard)
        return units

    @cached_property
    def server(self) -> ServerView:
        """By the pack's sums of features, or by its anchors where these are of another body's."""
        pack, sums = self.pack, self.pack.sums
        if sums is not None and not (pack.exported and changed_in(self.weights, pack.exported)):
            return ServerView(sums.standard, sums.prior, sums.examples)
        anchors = pack.anchors
        assert anchors is not None  # a home takes no pack without either
        every = np.arange(len(anchors.images))
        rows, labels = self.features(anchors.images.read(every)), anchors.images.labels
        learnt = anchors.rehearsed() if len(anchors.rehearsed()) else every
        seen = np.setdiff1d(every, learnt) if len(learnt) < len(every) else every
        groups = pack.manifest.model.feature_groups(self.width)
        standard = standard_of(rows.astype(np.float32), groups)
        values = standardised(rows, standard)
        prior = summarise(values[learnt], labels[learnt], len(self.classes), len(learnt))
        return ServerView(standard, prior, Examples(values[seen], labels[seen]))

    @cached_property
    def _reference(self) -> np.ndarray:
        """float64 [M, F + 1], images of the server."""
        seen = self.server.seen.features.astype(np.float64)
        return np.concatenate([seen, np.full((len(seen), 1), 3.0)], axis=1)

    @cached_property
    def known(self) -> Known:
        """What is known before any label of the device."""
        strength = NOISE * float(np.mean(np.sum(self._reference**2, axis=1)))
        return known_of(self.server.standard, max(strength, 1e-9), self.server.prior, len(self.classes))

    @cached_property
    def usual(self) -> np.ndarray:
        """float64 [M], ascending: predictive variance of the server's images."""
        return np.sort(predictive_variance(self.known, self._reference))

    def novelty(self, units: np.ndarray, known: Known | None = None) -> np.ndarray:
        """float64 [n]: predictive variance, 1 for what is newer than all but 5 % of the server's own images."""
        variance = predictive_variance(known or self.known, units)
        made: np.ndarray = variance / max(float(np.quantile(self.usual, USUAL)), 1e-12)
        return made


def _digest(pack: Pack, weights: dict[str, np.ndarray]) -> bytes:
    """Of all that the features depend on: graph, weights, statistics, normalisation."""
    info, model = pack.backbone(RIDGE), pack.manifest.model
    assert info is not None
    digest = hashlib.sha256(
        repr((pack.manifest.files[info.graph].sha256, model.mean, model.std, model.image_size)).encode()
    )
    for name in info.constants:
        if name in weights:
            digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.digest()[:16]
