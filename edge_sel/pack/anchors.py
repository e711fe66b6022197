"""Anchors: a few of the server's images in the pack, by which a device sees whether its model forgot their world."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import read_tensors, tensor_bytes
from edge_sel.data.dataset import ImageSet
from edge_sel.errors import PackError

ANCHORS = "anchors.safetensors"
MOST, MOST_BYTES = 100, 500_000
LEAST_REHEARSED = 40
"""Fewer are all needed to judge."""
QUALITY = 90
"""Of JPEG. What the model makes of the images is measured after they were compressed."""


_UNREADABLE = (KeyError, ValueError, TypeError, OSError, EOFError, SyntaxError, IndexError, OverflowError, struct.error)
"""What broken files make Pillow raise, and arrays of other shapes NumPy."""


class Anchors(NamedTuple):
    """Images of the server, as a device reads them."""

    images: ImageSet
    known: np.ndarray
    """bool[N], whether the pack's model classifies each correctly."""

    def rehearsed(self) -> np.ndarray:
        """Rows that a new head may be fitted to, half of each class; the others judge it. None where they are few."""
        labels = self.images.labels
        if len(labels) < LEAST_REHEARSED:
            return np.zeros(0, np.int64)
        place = np.array([np.count_nonzero(labels[:row] == label) for row, label in enumerate(labels)])
        return np.flatnonzero((place + labels) % 2 == 0)


def choose_anchors(images: ImageSet, rng: np.random.Generator) -> tuple[list[bytes], np.ndarray]:
    """JPEG files and labels int64[N] of some images, of each class as many, as far as the limits allow."""
    from PIL import Image

    rank = np.empty(len(images), np.int64)
    for label in range(len(images.classes)):
        members = np.flatnonzero(images.labels == label)
        rank[members] = rng.permutation(len(members))
    order = np.lexsort((rng.permutation(len(images)), rank))[:MOST]
    files: list[bytes] = []
    for row in order:
        content = BytesIO()
        Image.fromarray(images.read(np.array([row]))[0]).save(content, "JPEG", quality=QUALITY)
        if sum(map(len, files)) + len(content.getvalue()) > MOST_BYTES:
            break
        files.append(content.getvalue())
    return files, images.labels[order[: len(files)]]


def write_anchors(files: Sequence[bytes], labels: np.ndarray, known: np.ndarray) -> bytes:
    """The content of the pack's file."""
    joined = np.frombuffer(b"".join(files), np.uint8)
    ends = np.cumsum([len(file) for file in files], dtype=np.int64)
    labels, known = labels.astype(np.int64), known.astype(np.uint8)
    return tensor_bytes({"files": joined, "ends": ends, "labels": labels, "known": known})


def read_anchors(content: bytes, size: tuple[int, int], classes: Sequence[str], where: object = None) -> Anchors:
    """The images of the pack's file.

    Raises:
        PackError: it holds something else than images of this size and labels of these classes.
    """
    try:
        stored = read_tensors(content)
        labels, ends, known = stored["labels"], stored["ends"], stored["known"]
        if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in stored.values()):
            raise ValueError("types")
        if not len(labels) == len(ends) == len(known) <= MOST or not set(labels.tolist()) <= {*range(len(classes))}:
            raise ValueError("labels")
        joined, starts = stored["files"].tobytes(), [0, *ends.tolist()]
        images = np.empty((len(labels), *size, 3), np.uint8)
        for number, (start, end) in enumerate(zip(starts, ends.tolist(), strict=False)):
            images[number] = _decode(joined[start:end], size)
        return Anchors(ImageSet.from_arrays(images, labels, classes), known.astype(bool))
    except _UNREADABLE as error:
        raise PackError(f"{ANCHORS} cannot be read ({error})", where=where, fix="copy the pack again") from error


def _decode(file: bytes, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    try:
        image = Image.open(BytesIO(file), formats=["JPEG"])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(str(error)) from error
    if image.size != (size[1], size[0]) or image.mode != "RGB":  # before its pixels are decoded
        raise ValueError(f"an image of {image.size[1]} x {image.size[0]} pixels, {image.mode}")
    return np.asarray(image)
