"""Labelled images of one size, in memory as far as they fit and decoded on demand beyond that; normalised, measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edge_sel.data.images import MAX_PIXELS, Float32Array, Int64Array, UInt8Array, UnreadableImage, read_image
from edge_sel.errors import DataError

DEFAULT_CACHE_BYTES = 256 * 2**20
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601

# (images uint8 [n, h, w, 3], their ids) -> images of the same shape
MapFunction: TypeAlias = Callable[[UInt8Array, Sequence[str]], UInt8Array]


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was passed over: its path relative to the source, and why in a few words."""

    path: str
    reason: str


class ImageStore:
    """Where pixels come from: the first K images in memory, the others decoded from their files each time.

    Args:
        cached: uint8 [K, h, w, 3].
        paths: of all images, as far as they are not all in memory.
        max_pixels: see ``read_image``.
    """

    def __init__(self, cached: UInt8Array, paths: Sequence[Path] = (), max_pixels: int = MAX_PIXELS) -> None:
        self._cached, self._paths, self._max_pixels = cached, paths, max_pixels
        self.in_memory = not paths

    def read(self, rows: Int64Array) -> UInt8Array:
        """These rows as a fresh uint8 [n, h, w, 3]. Raises DataError naming an image that can no longer be read."""
        if self.in_memory:
            return self._cached[rows]
        images = np.empty((len(rows), *self._cached.shape[1:]), dtype=np.uint8)
        for place, row in enumerate(rows):
            images[place] = self._cached[row] if row < len(self._cached) else self._decode(self._paths[row])
        return images

    def _decode(self, path: Path) -> UInt8Array:
        try:
            height, width = self._cached.shape[1:3]
            return read_image(path, (height, width), max_pixels=self._max_pixels)
        except UnreadableImage as error:
            what = f"an image can no longer be read, {error.reason}"
            raise DataError(what, where=path, fix="put it back, or start again without it") from error


class _MappedStore:
    """An image set with a function applied whenever it is read."""

    in_memory = False

    def __init__(self, base: ImageSet, function: MapFunction) -> None:
        self._base, self._function = base, function

    def read(self, rows: Int64Array) -> UInt8Array:
        return self._function(self._base.read(rows), [self._base.ids[row] for row in rows])


_AT_ONCE = 16
"""Images to hash together, which may be large."""


class ImageSet:
    """Labelled RGB images of one size.

    Attributes:
        classes: class names; a label is an index into them. Not every class need occur.
        labels: int64 [N], 0 <= label < len(classes).
        ids: one stable name per image: for files the path relative to the source, with forward slashes.
        size: (height, width) in pixels.
        skipped: what the loader passed over, and why; empty for a set derived from another.
    """

    def __init__(
        self,
        store: ImageStore | _MappedStore,
        labels: npt.ArrayLike,
        classes: Sequence[str],
        ids: Sequence[str],
        size: tuple[int, int],
        *,
        rows: Int64Array | None = None,
        skipped: Sequence[Skipped] = (),
        digests: dict[int, tuple[int, int]] | None = None,
    ) -> None:
        self.labels: Int64Array = np.asarray(labels, dtype=np.int64)
        self.classes = tuple(classes)
        self.ids = tuple(ids)
        self.size = (int(size[0]), int(size[1]))
        self.skipped = tuple(skipped)
        if self.labels.shape != (len(self.ids),):
            raise ValueError(f"labels of shape {self.labels.shape} for {len(self.ids)} images")
        if len(self.ids) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"labels must lie in 0..{len(self.classes) - 1}")
        self._store = store
        self._rows: Int64Array = np.arange(len(self.ids), dtype=np.int64) if rows is None else rows
        self._digests = {} if digests is None else digests  # by the store's rows, for all sets of this store

    @classmethod
    def from_arrays(
        cls,
        images: UInt8Array,
        labels: npt.ArrayLike,
        classes: Sequence[str],
        ids: Sequence[str] | None = None,
    ) -> ImageSet:
        """A set over ``images``, uint8 [N, h, w, 3] (kept, not copied); ids default to "000000", "000001", …

        Raises:
            ValueError: shapes, dtype or labels do not fit together.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images must be uint8 [N, h, w, 3], not {images.dtype} {list(images.shape)}")
        if ids is None:
            ids = [f"{number:06d}" for number in range(len(images))]
        if len(ids) != len(images):
            raise ValueError(f"{len(ids)} ids for {len(images)} images")
        return cls(ImageStore(images), labels, classes, ids, images.shape[1:3])

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"ImageSet({len(self)} images {self.size[0]}x{self.size[1]}, {len(self.classes)} classes)"

    def read(self, indices: npt.ArrayLike) -> UInt8Array:
        """The images at ``indices`` (int [n]) as a fresh uint8 [n, h, w, 3].

        Raises:
            DataError: an image that is decoded on demand can no longer be read; names the file.
        """
        return self._store.read(self._rows[_as_indices(indices)])

    def subset(self, indices: npt.ArrayLike) -> ImageSet:
        """The images at ``indices`` (int [n]), in that order, sharing this set's memory."""
        chosen = _as_indices(indices)
        ids = [self.ids[index] for index in chosen]
        rows = self._rows[chosen]
        return ImageSet(
            self._store, self.labels[chosen], self.classes, ids, self.size, rows=rows, digests=self._digests
        )

    def relabelled(self, labels: npt.ArrayLike, classes: Sequence[str]) -> ImageSet:
        """The same images under other labels, int [N], of other classes."""
        return ImageSet(self._store, labels, classes, self.ids, self.size, rows=self._rows, digests=self._digests)

    def map(self, function: MapFunction) -> ImageSet:
        """The same samples with ``function(images, ids)`` applied, which must keep shape and dtype.

        Done once if the images are in memory, otherwise at every read; so what becomes of an image must not
        depend on the images it is read together with.
        """
        mapped = _MappedStore(self, function)
        store = ImageStore(mapped.read(np.arange(len(self)))) if self._store.in_memory else mapped
        return ImageSet(store, self.labels, self.classes, self.ids, self.size)

    def class_counts(self) -> Int64Array:
        """Samples per class, int64 [len(classes)]."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def content_digests(self) -> npt.NDArray[np.uint64]:
        """Two numbers for each image, uint64 [N, 2]: a hash of its pixels. Each image is read once for it.

        Raises:
            DataError: an image that is decoded on demand can no longer be read.
        """
        missing = [index for index, row in enumerate(self._rows.tolist()) if row not in self._digests]
        for start in range(0, len(missing), _AT_ONCE):
            part = missing[start : start + _AT_ONCE]
            for index, pixels in zip(part, self.read(part), strict=True):
                halves = (hashlib.blake2b(pixels.tobytes(), digest_size=8, salt=salt).digest() for salt in (b"", b"2"))
                first, second = (int.from_bytes(half, "little") for half in halves)
                self._digests[int(self._rows[index])] = first, second
        return np.array([self._digests[row] for row in self._rows.tolist()], np.uint64).reshape(-1, 2)

    def fingerprint(self) -> str:
        """A hash over size, classes, ids and labels, not pixels: the same samples in the same order."""
        digest = hashlib.sha256(repr((self.size, self.classes, self.ids)).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def _as_indices(indices: npt.ArrayLike) -> Int64Array:
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise ValueError(f"indices must be a list of integers, not {chosen.dtype} {list(chosen.shape)}")
    return chosen.astype(np.int64)


def images_at_once(most: int, size: tuple[int, int]) -> int:
    """How many images of ``size`` (height, width) to compute at a time: ``most``, or fewer above 128×128 pixels.

    What a network makes of them takes memory for each pixel.
    """
    return max(1, min(most, most * 128 * 128 // (size[0] * size[1])))


def normalise(images: UInt8Array, mean: npt.ArrayLike, std: npt.ArrayLike) -> Float32Array:
    """``(images / 255 - mean) / std``, channels first.

    Args:
        images: uint8 [N, H, W, 3].
        mean: [3], in 0..1.
        std: [3], in 0..1, above zero.

    Returns:
        float32 [N, 3, H, W], C-contiguous.

    Raises:
        ValueError: a ``std`` is not above zero.
    """
    centre = np.broadcast_to(np.asarray(mean, dtype=np.float64), 3)
    spread = np.broadcast_to(np.asarray(std, dtype=np.float64), 3)
    if not (spread > 0).all():
        raise ValueError(f"std must be above zero, not {spread.tolist()}")
    scale = (1 / (255 * spread)).astype(np.float32)
    offset = (centre / spread).astype(np.float32)
    count, height, width, _ = images.shape
    result: Float32Array = np.empty((count, 3, height, width), dtype=np.float32)
    for channel in range(3):
        plane = result[:, channel]
        np.multiply(images[..., channel], scale[channel], out=plane)
        plane -= offset[channel]
    return result


def intensity_std(images: UInt8Array) -> Float32Array:
    """Standard deviation of the grey value (0..1) over each image: float32 [N] for uint8 [N, H, W, 3]."""
    grey = images.reshape(len(images), images.shape[1] * images.shape[2], 3) @ (_LUMA / np.float32(255))
    return np.asarray(grey.std(axis=1), dtype=np.float32)


def channel_statistics(image_set: ImageSet, *, batch_size: int = 256) -> tuple[Float32Array, Float32Array]:
    """Mean and standard deviation of each channel over all pixels, read batch by batch.

    Returns:
        (mean, std): float32 [3] each, in 0..1; the std is at least one grey level, so safe to divide by.

    Raises:
        ValueError: the set is empty.
        DataError: an image can no longer be read.
    """
    if not len(image_set):
        raise ValueError("no images to take statistics of")
    total = np.zeros(3, dtype=np.int64)
    squares = np.zeros(3, dtype=np.int64)
    for start in range(0, len(image_set), batch_size):
        batch = image_set.read(np.arange(start, min(start + batch_size, len(image_set))))
        pixels = batch.reshape(-1, 3)
        total += pixels.sum(axis=0, dtype=np.int64)
        squares += np.square(pixels, dtype=np.uint32).sum(axis=0, dtype=np.int64)
    count = len(image_set) * image_set.size[0] * image_set.size[1]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)
