"""Which images judge and which are learnt from: by what they show, so that it is the same whatever joins them."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.duplicates import NO_DUPLICATES, Duplicates, find_duplicates
from edge_sel.data.images import Int64Array

_AT_ONCE = 16
"""Images, which may be large."""


class Roles(NamedTuple):
    """Ascending int64 indices of a set's images; what is in neither list is not used."""

    training: Int64Array
    validation: Int64Array
    duplicates: Duplicates


def split_by_content(images: ImageSet, fraction: float, *, cap: int, keep_duplicates: bool) -> Roles:
    """Hold back about ``fraction`` of the images, each by a hash of its pixels.

    An image that was learnt from never judges, and one that judged is never learnt from, whatever is added, renamed or
    removed, and whatever the seed. Of duplicates one of those to learn from stays. Two exceptions, of which later runs
    may think otherwise: a class of which all images would judge gives one to learn from, and where no image would
    judge, one does.

    Args:
        images: the whole set; a class without images may be among its classes.
        fraction: 0 < fraction < 1.
        cap: most images that judge. Further ones are not used, so that they can judge when others have gone.
        keep_duplicates: do not look for them.

    Raises:
        DataError: an image that is decoded on demand can no longer be read.
        ValueError: ``fraction`` out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
    places = content_places(images)
    held = places < fraction
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        if held[members].all():
            held[members[places[members].argmax()]] = False
    duplicates = NO_DUPLICATES if keep_duplicates else find_duplicates(images, held)
    distinct = np.arange(len(images)) if keep_duplicates else duplicates.distinct
    training, validation = distinct[~held[distinct]], distinct[held[distinct]]
    if not len(validation):
        counts = np.bincount(images.labels[training], minlength=len(images.classes))
        spare = training[counts[images.labels[training]] > 1]
        validation = spare[places[spare].argmin()][None] if len(spare) else validation
        training = np.setdiff1d(training, validation)
    if len(validation) > cap:
        validation = np.sort(validation[np.argsort(places[validation], kind="stable")[:cap]])
    return Roles(training, validation, duplicates)


def content_places(images: ImageSet) -> np.ndarray:
    """float64 [N] in [0, 1): a hash of each image's pixels, as uniform numbers."""
    numbers = np.empty(len(images), np.uint64)
    for start in range(0, len(images), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(images)))
        for row, pixels in zip(rows, images.read(rows), strict=True):
            numbers[row] = int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")
    made: np.ndarray = (numbers >> np.uint64(11)).astype(np.float64) / 2**53
    return made
