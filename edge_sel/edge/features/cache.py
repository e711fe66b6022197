"""What a plan's trainer is fed: images or, behind a frozen prefix, their features, each computed once.

Features are computed when they are first asked for, so an image that the gate holds back costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np

from edge_sel.config.settings import Settings
from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.edge.features.precision import FP32, INT8, TIMED, WORTHWHILE, choose_precision
from edge_sel.edge.features.store import FileStore, MemoryStore, Store, discard, row_bytes
from edge_sel.edge.free_memory import trim
from edge_sel.edge.progress import Progress
from edge_sel.engines.base import Engine, Prefix
from edge_sel.pack.manifest import PrefixInfo
from edge_sel.pack.reader import Pack

FILE = "features.cache"

CHUNK = 4
"""Images per run of a prefix, always: an image's last bits may depend on how many others it comes with, and a resumed
run has other ones to compute together. More of them are hardly faster."""

RANGED = 64
"""Images that tell the range of all: almost every one has something dark and something bright."""

LARGEST = float(np.finfo(np.float16).max)

Phase = Callable[[str], AbstractContextManager[None]]


class Features:
    """Features of images and of their mirror images.

    They are rounded to float16 whether they are kept or not, so that a run does not depend on where there was room.

    Args:
        pack: says how images are normalised.
        images: what indices refer to.
        info: the plan's frozen prefix; None without one.
        prefix: as the engine computes it; None where the engine's trainer takes images.
        load: loads it again, when it has been let go of too early.
        store: where to keep features; None computes them anew each time.
        progress: its tally counts the images that went through the prefix, and ``featured`` says which are kept, so
            that a resumed run counts as if it had not been interrupted.
        phase: tells the energy recorder: ``load`` for reading, ``prefix`` for computing.

    Attributes:
        kept: [copies · N] bool, which features need not be computed any more; empty where they are not kept.
    """

    def __init__(
        self,
        pack: Pack,
        images: ImageSet,
        info: PrefixInfo | None,
        prefix: Prefix | None,
        load: Callable[[], Prefix | None],
        store: Store | None,
        progress: Progress,
        phase: Phase,
    ) -> None:
        self._model, self._images, self._info = pack.manifest.model, images, info
        self._takes_images, self._prefix, self._load = prefix is None, prefix, load
        self._store, self._p, self._phase = store, progress, phase
        self.kept = store.there() if store else np.zeros(0, bool)
        if len(progress.featured) != len(self.kept):
            progress.featured = np.zeros(len(self.kept), bool)

    def get(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> np.ndarray:
        """Float32 [n, …], for ``Batch.images`` or ``score``.

        Args:
            indices: of the images [n].
            mirrored: [n] bool, which of them to mirror left to right; None for none.

        Raises:
            DataError: an image can no longer be read; names the file.
        """
        mirrored = np.zeros(len(indices), bool) if mirrored is None else mirrored
        if self._takes_images:
            self._p.tally.prefixed += len(indices) if self._info else 0
            return self._pixels(indices, mirrored)
        if self._store is None:
            self._p.tally.prefixed += _filled(len(indices))
            return self._compute(indices, mirrored).astype(np.float32)
        step = 2 if self._model.flip else 1
        keys, back = np.unique(indices * step + mirrored, return_inverse=True)
        new = ~self._p.featured[keys]
        self._p.tally.prefixed += _filled(int(new.sum()))
        self._p.featured[keys] = True
        with self._phase("load"):
            rows, found = self._store.read(keys)
        missing = keys[~found]
        if len(missing):
            rows[~found] = self._compute(missing // step, missing % step > 0)
            self._keep(missing, rows[~found])
        if self._store is not None:
            self.kept[keys] = True
            if self.kept.all():  # the prefix has done its work: its memory is better spent elsewhere
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

    def _compute(self, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Float16 [n, …]; the last image fills up the last chunk."""
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
            self._store, self.kept, self._p.featured = None, self.kept[:0], self._p.featured[:0]


def open_features(
    engine: Engine,
    pack: Pack,
    plan: str,
    images: ImageSet,
    progress: Progress,
    settings: Settings,
    *,
    folder: Path,
    phase: Phase,
    expected: float = 0.0,
    emit: Callable[..., None] = lambda event, **figures: None,
    cpu_time: Callable[[], float] = time.process_time,
) -> Features:
    """What the trainer of a plan is to be fed, from ``images`` and, if the model allows it, their mirror images.

    They are kept in memory up to ``feature_cache_mb``, else in a file in ``folder`` up to ``feature_cache_disk_mb`` and
    half of the free disk, else not at all. A file that a stopped process left there is used again if it is of the
    same pack, weights, images, engine and precision. The precision is chosen when ``progress`` has none yet;
    ``expected`` is the number of features that the rung will need.
    """
    info, weights, path = pack.prefix(plan), progress.weights, folder / FILE
    if info is not None and not progress.precision:
        progress.precision = settings.prefix_precision
        if info.int8 is None or (settings.prefix_precision == "auto" and expected < WORTHWHILE):
            progress.precision = FP32
            if settings.prefix_precision == INT8:
                why = "the pack has no int8 prefix for this plan: export it again"
                emit("prefix", plan=plan, precision=FP32, why=why, ms_per_image=None, relative_error=None)
        elif settings.prefix_precision == "auto":
            with phase("prefix"):
                event = choose_precision(
                    engine, pack, plan, weights, _range(pack, images), partial(_chunks, pack, images), cpu_time
                )
            trim()  # of both that were tried
            progress.precision = event["precision"] if event else FP32
            if event:
                progress.tally.prefixed += 2 * CHUNK * (TIMED + 1) if event["ms_per_image"] else 0
                emit("prefix", **event)
    integers = {"int8": _range(pack, images)} if info and progress.precision == INT8 else {}
    load = partial(engine.prefix, pack, plan, weights, **integers)
    prefix = load()
    store: Store | None = None
    if info is not None and prefix is not None:
        count, size = copies(pack) * len(images), copies(pack) * len(images) * row_bytes(info.shape)
        if size <= settings.feature_cache_mb * 2**20:
            store = MemoryStore(count, info.shape)
        elif size <= settings.feature_cache_disk_mb * 2**20:
            store = _file_store(path, count, info.shape, _key(engine, pack, info, progress, images))
    if not isinstance(store, FileStore):
        discard(path)
    return Features(pack, images, info, prefix, load, store, progress, phase)


def copies(pack: Pack) -> int:
    """How many features an image may have: of itself and of its mirror image."""
    return 2 if pack.manifest.model.flip else 1


def _file_store(path: Path, count: int, shape: tuple[int, ...], key: bytes) -> FileStore | None:
    """A file, if it leaves half of the free disk alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.stat().st_size if path.exists() else 0
        if count * row_bytes(shape) <= there + shutil.disk_usage(path.parent).free // 2:
            return FileStore(path, count, shape, key)
    except OSError:
        pass
    return None


def _sample(pack: Pack, images: ImageSet, count: int) -> np.ndarray:
    """Normalised images from all over the set."""
    model = pack.manifest.model
    return normalise(images.read(np.linspace(0, len(images) - 1, count).astype(np.int64)), model.mean, model.std)


def _chunks(pack: Pack, images: ImageSet) -> list[np.ndarray]:
    """For a trial."""
    return np.split(_sample(pack, images, CHUNK * (TIMED + 1)), TIMED + 1)


def _range(pack: Pack, images: ImageSet) -> tuple[float, float]:
    """Of the normalised images, from some of them."""
    pixels = _sample(pack, images, RANGED)
    return float(pixels.min()), float(pixels.max())


def _key(engine: Engine, pack: Pack, info: PrefixInfo, progress: Progress, images: ImageSet) -> bytes:
    """A hash of all that the features depend on."""
    parts = [engine.name, pack.digest, info.graph, info.shape, pack.manifest.model.flip, images.fingerprint()]
    digest = hashlib.sha256(json.dumps([*parts, progress.precision]).encode())
    for name in info.constants:
        if name in progress.weights:
            digest.update(np.ascontiguousarray(progress.weights[name]).tobytes())
    return digest.digest()


def _filled(count: int) -> int:
    """With the images that fill up the last chunk."""
    return -(-count // CHUNK) * CHUNK
