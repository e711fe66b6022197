"""What a plan's trainer is fed: images or, behind a frozen backbone, their features, each computed once.

Features are computed when they are first asked for, so an image that the gate holds back costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.config.settings import Settings
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.edge.features.precision import CHUNK, INT8, EnterPhase, image_range
from edge_sel.edge.features.shared import KnownFeatures, SharedFeatures
from edge_sel.edge.features.store import FeatureStore, discard, open_store
from edge_sel.engines.base import Engine, Prefix
from edge_sel.pack.manifest import PrefixInfo
from edge_sel.pack.reader import Pack

FILE = "features.cache"

LARGEST = float(np.finfo(np.float16).max)


class FeatureCache:
    """Features of images and of their mirror images.

    They are rounded to float16 whether they are kept or not, so that a run does not depend on where there was room.

    Args:
        pack: says how images are normalised.
        images: what indices refer to.
        info: the plan's frozen backbone; None without one.
        prefix: the backbone as the engine computes it; None where the engine's trainer takes images.
        load: loads it again, when it has been let go of too early.
        store: where to keep features; None computes them anew each time.
        featured: which were kept by an earlier part of the run, [copies · N] bool, or empty.
        phase: tells the energy recorder: ``load`` for reading, ``prefix`` for computing.
        known: of earlier runs; None for none.

    Attributes:
        kept: [copies · N] bool, which features need not be computed any more; empty where they are not kept.
        featured: which have been asked for, by an earlier part of the run too, so that a resumed run counts as if it
            had not been interrupted.
        computed: images that went through the backbone so far, by that count.
        takes_images: whether the engine's trainer does, and computes the backbone itself, if there is one.
    """

    def __init__(
        self,
        pack: Pack,
        images: ImageSet,
        info: PrefixInfo | None,
        prefix: Prefix | None,
        load: Callable[[], Prefix | None],
        store: FeatureStore | None,
        featured: np.ndarray,
        phase: EnterPhase,
        known: KnownFeatures | None = None,
    ) -> None:
        self._model, self._images, self._info = pack.manifest.model, images, info
        self.takes_images, self._prefix, self._load = prefix is None, prefix, load
        self._store, self._phase, self._known = store, phase, known
        self.kept = store.there() if store else np.zeros(0, bool)
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
        step = copies(self._model.flip)
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
                self._prefix = None
        return rows.astype(np.float32)[back]

    def close(self, *, keep: bool) -> None:
        """Forget all; with ``keep`` leave a file for the process that resumes the run."""
        store, self._store, self._prefix = self._store, None, None
        if store is not None:
            store.close(keep=keep)

    def _pixels(self, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        with self._phase("load"):
            images = self._images.read(indices)
            images[mirrored] = images[mirrored, :, ::-1]
            return normalise(images, self._model.mean, self._model.std)

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
        with self._phase("prefix"):
            self._prefix = prefix = self._prefix or self._load()
            assert prefix is not None
            features = np.concatenate([prefix(chunk) for chunk in np.split(pixels, len(pixels) // CHUNK)])
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
    engine: Engine,
    pack: Pack,
    plan: str,
    weights: Arrays,
    images: ImageSet,
    *,
    precision: str,
    featured: np.ndarray,
    settings: Settings,
    folder: Path | None,
    phase: EnterPhase,
    outlive: bool = False,
    shared: SharedFeatures | None = None,
) -> FeatureCache:
    """What the trainer of a plan is to be fed, from ``images`` and, if the model allows it, their mirror images.

    Features are kept in memory or in a file in ``folder``, if there is one, as ``open_store`` decides by the settings;
    with ``outlive`` rather in a file. ``shared`` are those of earlier runs.
    """
    info, path = pack.prefix(plan), None if folder is None else folder / FILE
    load = _loader(engine, pack, plan, weights, images, precision)
    prefix = load()
    store = None
    if info is None or prefix is None:
        discard(path)
    else:
        store = open_store(
            path, copies(pack.manifest.model.flip) * len(images), info.shape,
            partial(_key, engine.name, pack, info, precision, weights, images),
            memory_mb=settings.feature_cache_mb, disk_mb=settings.feature_cache_disk_mb, outlive=outlive,
        )  # fmt: skip
    known = known_features(engine, pack, info, precision, weights, images, shared)
    return FeatureCache(pack, images, info, prefix, load, store, featured, phase, known)


def passing_features(
    engine: Engine, pack: Pack, plan: str, weights: Arrays, images: ImageSet, *, precision: str, phase: EnterPhase,
    shared: SharedFeatures | None = None,
) -> FeatureCache:  # fmt: skip
    """The same, of which the run keeps nothing."""
    load, info = _loader(engine, pack, plan, weights, images, precision), pack.prefix(plan)
    known = known_features(engine, pack, info, precision, weights, images, shared)
    return FeatureCache(pack, images, info, load(), load, None, np.zeros(0, bool), phase, known)


def known_features(
    engine: Engine, pack: Pack, info: PrefixInfo | None, precision: str, weights: Arrays, images: ImageSet,
    shared: SharedFeatures | None, kind: Any = np.float16,
) -> KnownFeatures | None:  # fmt: skip
    """The features of these images that earlier runs have left, by a hash of all that computes them."""
    if shared is None or shared.stopped or info is None:
        return None
    graph = info.int8.graph if precision == INT8 and info.int8 else info.graph
    model = pack.manifest.model
    by = [
        engine.name, version("onnxruntime") if engine.name != "torch" else version("torch"), platform.machine(),
        pack.manifest.files[graph].sha256, info.shape, model.mean, model.std, model.image_size, precision or "fp32",
        image_range(pack, images) if precision == INT8 else None,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(by).encode() + weights_digest(info, weights)).digest()
    return KnownFeatures(shared, digest, images.content_digests(), kind)


def _loader(
    engine: Engine, pack: Pack, plan: str, weights: Arrays, images: ImageSet, precision: str
) -> Callable[[], Prefix | None]:
    integers = {"int8": image_range(pack, images)} if precision == INT8 else {}
    return partial(engine.prefix, pack, plan, weights, **integers)


def _key(
    engine: str, pack: Pack, info: PrefixInfo, precision: str, weights: Mapping[str, np.ndarray], images: ImageSet
) -> bytes:
    """A hash of all that the features depend on."""
    parts = [engine, pack.digest, info.graph, info.shape, pack.manifest.model.flip, images.fingerprint(), precision]
    return hashlib.sha256(json.dumps(parts).encode() + weights_digest(info, weights)).digest()


def weights_digest(info: PrefixInfo, weights: Mapping[str, np.ndarray]) -> bytes:
    """A hash of the weights that features behind this backbone depend on."""
    digest = hashlib.sha256()
    for name in info.constants:
        if name in weights:
            digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.digest()


def _filled(count: int) -> int:
    """With the images that fill up the last chunk."""
    return -(-count // CHUNK) * CHUNK
