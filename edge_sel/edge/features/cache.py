"""What a plan's trainer is fed: images or, behind a frozen backbone, their features, each computed once.

Features are computed when they are first asked for, so an image that the gate holds back costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.config.settings import Settings
from edge_sel.data.dataset import normalise
from edge_sel.edge.features.precision import CHUNK, INT8, EnterPhase, FrozenBackbone
from edge_sel.edge.features.shared import KnownFeatures, SharedFeatures
from edge_sel.edge.features.store import FeatureStore, discard, open_store
from edge_sel.engines.base import Backbone
from edge_sel.pack.manifest import BackboneInfo

FILE = "features.cache"
NOT_KEPT = np.zeros(0, bool)

LARGEST = float(np.finfo(np.float16).max)


class FeatureCache:
    """Features of images and of their mirror images.

    They are rounded to float16 whether they are kept or not, so that a run does not depend on where there was room.

    Args:
        backbone: of the plan; its ``info`` is None where it has none.
        precision: that it computes in.
        phase: tells the energy recorder: ``load`` for reading, ``backbone`` for computing.
        store: where to keep features; None computes them anew each time.
        featured: which were kept by an earlier part of the run, [copies · N] bool, or empty.
        shared: features that earlier runs have left; None for none.
        loaded: the backbone, where it is loaded already.

    Attributes:
        kept: [copies · N] bool, which features need not be computed any more; empty where they are not kept.
        featured: which have been asked for, by an earlier part of the run too, so that a resumed run counts as if it
            had not been interrupted.
        computed: images that went through the backbone so far, by that count.
        takes_images: whether the engine's trainer does, and computes the backbone itself, if there is one.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        precision: str,
        phase: EnterPhase,
        store: FeatureStore | None = None,
        featured: np.ndarray = NOT_KEPT,
        shared: SharedFeatures | None = None,
        loaded: Backbone | None = None,
    ) -> None:
        self._backbone, self._info, self._load = backbone, backbone.info, partial(backbone.load, precision)
        self._loaded = loaded or self._load()
        self.takes_images, self._store, self._phase = self._loaded is None, store, phase
        self._known = known_features(backbone, precision, shared)
        self.kept = store.there() if store else NOT_KEPT
        self.featured = featured if len(featured) == len(self.kept) else np.zeros(len(self.kept), bool)
        self.computed = 0

    def get(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> np.ndarray:
        """Float32 [n, …], for ``Batch.images`` or ``score``.

        Args:
            indices: of the images [n].
            mirrored: [n] bool, which of them to mirror left to right; None for none.

        Raises:
            DataError: an image can no longer be read; names the file.
        """
        mirrored = np.zeros(len(indices), bool) if mirrored is None else mirrored
        if self.takes_images:
            self.computed += len(indices) if self._info else 0
            return self._pixels(indices, mirrored)
        if self._store is None:
            rows, fresh = self._compute(indices, mirrored)
            self.computed += _filled(int(fresh.sum()))
            return rows.astype(np.float32)
        step = copies(self._backbone.pack.manifest.model.flip)
        keys, back = np.unique(indices * step + mirrored, return_inverse=True)
        new = ~self.featured[keys]
        self.featured[keys] = True
        with self._phase("load"):
            rows, found = self._store.read(keys)
        missing = keys[~found]
        if len(missing):
            rows[~found], fresh = self._compute(missing // step, missing % step > 0)
            new[~found] &= fresh
            self._keep(missing, rows[~found])
        self.computed += _filled(int(new.sum()))
        if self._store is not None:
            self.kept[keys] = True
            if self.kept.all():  # the backbone has done its work: its memory is better spent elsewhere
                self._loaded = None
        return rows.astype(np.float32)[back]

    def close(self, *, keep: bool) -> None:
        """Forget all; with ``keep`` leave a file for the process that resumes the run."""
        store, self._store, self._loaded = self._store, None, None
        if store is not None:
            store.close(keep=keep)

    def _pixels(self, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        with self._phase("load"):
            images, model = self._backbone.images.read(indices), self._backbone.pack.manifest.model
            images[mirrored] = images[mirrored, :, ::-1]
            return normalise(images, model.mean, model.std)

    def _compute(self, indices: np.ndarray, mirrored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Float16 [n, …], and which of them were computed, as no earlier run has left them."""
        if self._known is None or self._info is None:
            return self._computed(indices, mirrored), np.ones(len(indices), bool)
        with self._phase("load"):
            rows, found = self._known.read(indices, mirrored, self._info.shape)
        if not found.all():
            rows[~found] = self._computed(indices[~found], mirrored[~found])
            with self._phase("load"):
                self._known.write(indices[~found], mirrored[~found], rows[~found])
        return rows, ~found

    def _computed(self, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """The last image fills up the last chunk."""
        pixels = self._pixels(indices, mirrored)
        fill = _filled(len(pixels)) - len(pixels)
        pixels = np.concatenate([pixels, *[pixels[-1:]] * fill])
        with self._phase("backbone"):
            self._loaded = loaded = self._loaded or self._load()
            assert loaded is not None
            features = np.concatenate([loaded(chunk) for chunk in np.split(pixels, len(pixels) // CHUNK)])
            rounded: np.ndarray = np.clip(features[: len(indices)], -LARGEST, LARGEST).astype(np.float16)
            return rounded

    def _keep(self, keys: np.ndarray, rows: np.ndarray) -> None:
        assert self._store is not None
        try:
            with self._phase("load"):
                self._store.write(keys, rows)
        except OSError:  # the disk is full: from now on without
            self._store.close(keep=False)
            self._store, self.kept, self.featured = None, self.kept[:0], self.featured[:0]


def copies(flip: bool) -> int:
    """How many features an image may have: of itself and, where the model allows ``flip``, of its mirror image."""
    return 2 if flip else 1


def open_features(
    backbone: FrozenBackbone, precision: str, phase: EnterPhase, *, featured: np.ndarray, settings: Settings,
    folder: Path | None, outlive: bool = False, shared: SharedFeatures | None = None,
) -> FeatureCache:  # fmt: skip
    """What the trainer of a plan is to be fed, from its images and, if the model allows it, their mirror images.

    Features are kept in memory or in a file in ``folder``, if there is one, as ``open_store`` decides by the settings;
    with ``outlive`` rather in a file. ``shared`` are those of earlier runs.
    """
    info, path = backbone.info, None if folder is None else folder / FILE
    loaded, store = backbone.load(precision), None
    if info is None or loaded is None:
        discard(path)
    else:
        store = open_store(
            path, copies(backbone.pack.manifest.model.flip) * len(backbone.images), info.shape,
            partial(_key, backbone, info, precision), memory_mb=settings.feature_cache_mb,
            disk_mb=settings.feature_cache_disk_mb, outlive=outlive,
        )  # fmt: skip
    return FeatureCache(backbone, precision, phase, store, featured, shared, loaded)


def known_features(
    backbone: FrozenBackbone, precision: str, shared: SharedFeatures | None, kind: Any = np.float16
) -> KnownFeatures | None:
    """The features of these images that earlier runs have left, by a hash of all that computes them."""
    info, name = backbone.info, backbone.engine.name
    if shared is None or shared.stopped or info is None:
        return None
    graph = info.int8.graph if precision == INT8 and info.int8 else info.graph
    manifest = backbone.pack.manifest
    model = manifest.model
    by = [
        name, version("onnxruntime") if name != "torch" else version("torch"), platform.machine(),
        manifest.files[graph].sha256, info.shape, model.mean, model.std, model.image_size, precision or "fp32",
        backbone.image_range() if precision == INT8 else None,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(by).encode() + backbone.digest(info)).digest()
    return KnownFeatures(shared, digest, backbone.images.content_digests(), kind)


def _key(backbone: FrozenBackbone, info: BackboneInfo, precision: str) -> bytes:
    """A hash of all that the features depend on."""
    pack = backbone.pack
    parts = [
        backbone.engine.name, pack.digest, info.graph, info.shape, pack.manifest.model.flip,
        backbone.images.fingerprint(), precision,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode() + backbone.digest(info)).digest()


def _filled(count: int) -> int:
    """With the images that fill up the last chunk."""
    return -(-count // CHUNK) * CHUNK
