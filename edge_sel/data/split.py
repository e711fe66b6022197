"""Set samples aside: class by class by chance, or by their pixels, so that it stays so whatever joins them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge_sel.data.dataset import ImageSet
from edge_sel.data.duplicates import NO_DUPLICATES, Duplicates, find_duplicates
from edge_sel.data.images import Int64Array


def stratified_split(
    labels: npt.ArrayLike, fraction: float, rng: np.random.Generator, *, cap: int | None = None
) -> tuple[Int64Array, Int64Array]:
    """Hold out about ``fraction`` of every class.

    A class of two samples or more gives at least one and keeps at least one; a class of one sample keeps it.
    A ``cap`` below the number of classes wins over that minimum: the largest classes then give one each.

    Args:
        labels: int [N].
        fraction: 0 < fraction < 1.
        rng: decides which samples; the same state gives the same split.
        cap: at most this many held samples in total.

    Returns:
        (rest, held): sorted int64 indices, disjoint, together 0..N-1.

    Raises:
        ValueError: ``fraction`` or ``cap`` out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
    if cap is not None and cap < 0:
        raise ValueError(f"cap must not be negative, not {cap}")
    values = np.asarray(labels, dtype=np.int64)
    _, members, sizes = np.unique(values, return_inverse=True, return_counts=True)
    quotas = np.where(sizes < 2, 0, np.clip(np.rint(sizes * fraction), 1, sizes - 1)).astype(np.int64)
    if cap is not None and quotas.sum() > cap:
        quotas = _shrink(quotas, cap)
    chosen = [rng.permutation(np.flatnonzero(members == kind))[:quota] for kind, quota in enumerate(quotas)]
    held = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)
    rest = np.setdiff1d(np.arange(len(values)), held, assume_unique=True)
    return rest.astype(np.int64), held.astype(np.int64)


def _shrink(quotas: Int64Array, cap: int) -> Int64Array:
    """Reduce ``quotas`` to a total of ``cap``: one each first, the remainder in proportion."""
    base = (quotas > 0).astype(np.int64)
    if cap < base.sum():
        largest = np.argsort(-quotas, kind="stable")[:cap]
        base[:] = 0
        base[largest] = 1
        return base
    extra = quotas - base
    share = extra * ((cap - base.sum()) / extra.sum())
    result: Int64Array = base + np.floor(share).astype(np.int64)
    remainder = np.argsort(np.floor(share) - share, kind="stable")[: cap - result.sum()]
    result[remainder] += 1
    return result


class Roles(NamedTuple):
    """Which images to train on and which are for validation: ascending int64 indices; others are not used."""

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
