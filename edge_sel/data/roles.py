"""Which images are for validation and which to train on: by their pixels, so that it stays so whatever joins them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.duplicates import NO_DUPLICATES, Duplicates, find_duplicates
from edge_sel.data.images import Int64Array


class Roles(NamedTuple):
    """Ascending int64 indices of a set's images; what is in neither list is not used."""

    training: Int64Array
    validation: Int64Array
    duplicates: Duplicates


def split_by_content(images: ImageSet, fraction: float, *, cap: int, keep_duplicates: bool) -> Roles:
    """Hold back about ``fraction`` of the images, each by a hash of its pixels.

    A training image is never a validation image later, nor the other way round, whatever is added, renamed or removed,
    and whatever the seed; at another image size the pixels, and so the split, are others. Of duplicates a training
    image stays. A class of which all images would be held back gives one to train on, and where no image would be
    held back, one is: there a larger folder may decide otherwise.

    Args:
        images: the whole set; a class without images may be among its classes.
        fraction: 0 < fraction < 1.
        cap: most validation images. Further ones are not trained on either: they may be needed when others have gone.
        keep_duplicates: do not look for them.

    Raises:
        DataError: an image that is decoded on demand can no longer be read.
        ValueError: ``fraction`` out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
    places = as_places(images.content_digests()[:, 0])
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


def as_places(hashes: np.ndarray) -> np.ndarray:
    """float64 [N] in [0, 1): the hashes as uniform numbers."""
    made: np.ndarray = (hashes >> np.uint64(11)).astype(np.float64) / 2**53
    return made
