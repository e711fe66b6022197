"""Images that show again what another image already shows: copies, and frames of one scene."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.images import Float32Array, Int64Array, UInt8Array

SIDE = 32
"""Images are compared at this size, in grey."""
SHIFT = 4
"""Pixels of it by which two frames may be displaced in each direction, an eighth of the image."""
BLOCK = 4
"""Side of the blocks that must agree each by itself: what is as large as one of them tells two images apart."""
AGREE = 0.22
"""Root mean square difference within a block, in standard deviations of the image, that is still noise.

Of frames of one CIFAR-10 scene (displaced by fractions of a pixel, lighter or darker, with noise) 99 % of the pairs lie
below 0.18; of different images, as they are, in fog, in the dark or blurred, none below 0.35, of handwritten digits
none below 0.25."""
WINDOW = 8
"""Frames of a scene are looked for among so many files before an image; copies among all."""
NEAR, ANYWHERE, DISPLACED = 0.2, 0.9, 0.65
"""Least correlation of two 8 × 8 thumbnails for a closer look, within the window and beyond it; and of the best place
of the middle of one in the other. Of displaced frames 99 % pass, of different images some per cent."""
LEAST_OF_CLASS = 10
"""No class is left with fewer, as far as it has them: a lamp before a fixed camera has two pictures, on and off."""

_CROP = SIDE - 2 * SHIFT
_AT_ONCE = 512
_READ_AT_ONCE = 16
"""Images, which may be large."""


class Duplicates(NamedTuple):
    """Which images of a set show again what another shows."""

    distinct: Int64Array
    """[D] indices of one image for each that differs from all others, ascending."""
    left_out: Int64Array
    """[M] indices of the others."""
    contradictory: Int64Array
    """[K] indices of images that are like an earlier one of another class; they count as distinct."""


_NONE = np.empty(0, np.int64)
NO_DUPLICATES = Duplicates(_NONE, _NONE, _NONE)
"""Of a set that nobody has looked at."""


def find_duplicates(images: ImageSet, held: np.ndarray | None = None) -> Duplicates:
    """Compare every image with all others.

    Two images are duplicates if their thumbnails are equal, or if the middle of one is found in the other: displaced by
    up to ``SHIFT`` pixels and a fraction (one step of Lucas and Kanade), with a brightness and a contrast of its own,
    it differs in no block by more than ``AGREE``. An image is left out if it is a duplicate of one that is kept, of the
    same class, unless fewer than ``LEAST_OF_CLASS`` of the class would be left. Of two duplicates the one to train on
    stays, else the earlier: what was learnt from must not judge, nor make room for what came later. Images without any
    contrast are never alike unless they are equal.

    The result does not depend on the number of threads: correlations of thumbnails are sums of integers below 2²⁴,
    which float32 adds exactly in any order.

    Args:
        images: what is compared.
        held: bool [N], which images are held back for validation; None for none.

    Raises:
        DataError: an image that is decoded on demand can no longer be read.

    Source: Lewis 1995, Fast Normalized Cross-Correlation; Lucas and Kanade 1981, An Iterative Image Registration
    Technique.
    """
    grey = _thumbnails(images)
    order = np.argsort(np.zeros(len(images)) if held is None else held, kind="stable").tolist()
    alike: dict[int, list[int]] = {}
    equal: dict[bytes, dict[int, int]] = {}
    for number in order:
        firsts = equal.setdefault(grey[number].tobytes(), {})
        if firsts:
            alike[number] = list(firsts.values())
        firsts.setdefault(int(images.labels[number]), number)
    rows = np.array(sorted(first for firsts in equal.values() for first in firsts.values()), np.int64)
    pairs = np.concatenate([np.empty((0, 2), np.int64), *_candidates(grey, rows)])
    for start in range(0, len(pairs), _AT_ONCE):
        part = pairs[start : start + _AT_ONCE]
        for one, other in part[_alike(grey, part)].tolist():
            alike.setdefault(other, []).append(one)
            alike.setdefault(one, []).append(other)
    return _sort_out(alike, order, images.labels)


def shows_again(image: UInt8Array, others: UInt8Array) -> bool:
    """Whether an image uint8 [H, W, 3] is a duplicate of one of the others [n, H, W, 3], as in ``find_duplicates``."""
    grey = np.concatenate([_grey(others), _grey(image[None])])
    if not len(others):
        return False
    if (grey[:-1] == grey[-1]).all((1, 2)).any():
        return True
    last = np.full(len(others), len(others))
    pairs = np.stack([np.arange(len(others)), last], axis=1)
    return bool(_alike(grey, pairs).any() or _alike(grey, pairs[:, ::-1]).any())


def _sort_out(alike: dict[int, list[int]], order: list[int], labels: Int64Array) -> Duplicates:
    """Leave out what is like a kept image of its class that comes before it in this order.

    What is like a left-out image only is kept: of a camera that turns slowly all would go.
    """
    kept = np.ones(len(labels), bool)
    contradictory = []
    place = {number: at for at, number in enumerate(order)}
    for number in sorted(alike, key=place.__getitem__):
        like = [one for one in alike[number] if kept[one] and place[one] < place[number]]
        kept[number] = all(labels[one] != labels[number] for one in like)
        if any(labels[one] != labels[number] for one in like):
            contradictory.append(number)
    for label in np.unique(labels[~kept]):
        spare = np.flatnonzero((labels == label) & ~kept)
        few = min(max(LEAST_OF_CLASS - np.count_nonzero(kept[labels == label]), 0), len(spare))
        kept[spare[np.arange(few) * len(spare) // max(few, 1)]] = True
    return Duplicates(np.flatnonzero(kept), np.flatnonzero(~kept), np.array(sorted(contradictory), np.int64))


def _thumbnails(images: ImageSet) -> UInt8Array:
    """uint8 [N, SIDE, SIDE], grey."""
    made = np.empty((len(images), SIDE, SIDE), np.uint8)
    for start in range(0, len(images), _READ_AT_ONCE):
        rows = np.arange(start, min(start + _READ_AT_ONCE, len(images)))
        made[rows] = _grey(images.read(rows))
    return made


def _grey(pixels: UInt8Array) -> UInt8Array:
    from PIL import Image

    made = np.empty((len(pixels), SIDE, SIDE), np.uint8)
    for row, image in enumerate(pixels):
        small = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        made[row] = np.asarray(small)
    return made


def _candidates(grey: UInt8Array, rows: Int64Array) -> Iterator[Int64Array]:
    """Pairs [P, 2] of ``rows`` that are worth a closer look, the earlier image first."""
    side = SIDE // 8
    coarse = grey[rows].reshape(len(rows), 8, side, 8, side).mean((2, 4))
    # Of length 2¹² at most, so that no sum of products exceeds 2²⁴.
    units = np.trunc(2**12 * _standardised(coarse.reshape(len(rows), 64)) / 8).astype(np.float32)
    for start in range(0, len(rows), _AT_ONCE):
        block = units[start : start + _AT_ONCE]
        likeness = block @ units[: start + len(block)].T
        one, other = np.nonzero(likeness > NEAR * 2**24)
        one, values = one + start, likeness[one, other]
        near = (other < one) & ((one - other <= WINDOW) | (values > ANYWHERE * 2**24))
        one, other = one[near], other[near]
        worth = _displaced(coarse[other], coarse[one]) > DISPLACED
        yield np.stack([rows[other[worth]], rows[one[worth]]], axis=1)


def _displaced(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """float64 [P], how well the middle of the first [P, 8, 8] correlates with the best place in the second."""
    middle, best = _standardised(one[:, 1:7, 1:7].reshape(-1, 36)), np.full(len(one), -1.0)
    for row, column in np.ndindex(3, 3):
        place = other[:, row : row + 6, column : column + 6].reshape(-1, 36)
        best = np.maximum(best, (middle * _standardised(place)).mean(1))
    return best


def _alike(grey: UInt8Array, pairs: Int64Array) -> np.ndarray:
    """bool [P], whether the middle of the first image of a pair is found in the second."""
    numbers, place = np.unique(
        pairs, return_inverse=True
    )  # an image is in many pairs: what is its own is computed once
    first, second = place.reshape(pairs.shape).T
    blurred = _blurred(grey[numbers])
    middle = _standardised(blurred[:, SHIFT:-SHIFT, SHIFT:-SHIFT].reshape(len(numbers), -1))
    rows, columns = _best_places(middle, blurred, first, second)
    wanted, design = middle[first], _design(blurred, second, rows, columns)
    gram = design.transpose(0, 2, 1) @ design + 1e-6 * np.eye(4, dtype=np.float32)
    fitted = design @ np.linalg.solve(gram, design.transpose(0, 2, 1) @ wanted[:, :, None])
    difference = (fitted[:, :, 0] - wanted) ** 2
    blocks = difference.reshape(len(pairs), _CROP // BLOCK, BLOCK, _CROP // BLOCK, BLOCK).mean((2, 4))
    return np.asarray((blocks.max((1, 2)) < AGREE**2) & wanted.any(1))


def _blurred(grey: UInt8Array) -> Float32Array:
    """float32 [N, SIDE, SIDE] by a binomial filter, exact: a displacement by half a pixel is then nearly linear."""
    padded = np.pad(grey.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    blurred: Float32Array = (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 16
    return blurred


def _best_places(
    middle: Float32Array, blurred: Float32Array, first: Int64Array, second: Int64Array
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, int [P], where the middle of a first image correlates best with the second image."""
    places = 2 * SHIFT + 1
    padded = np.zeros_like(blurred)
    padded[:, :_CROP, :_CROP] = middle.reshape(-1, _CROP, _CROP)
    spectra = np.conj(np.fft.rfft2(padded))[first] * np.fft.rfft2(blurred)[second]
    products = np.fft.irfft2(spectra, (SIDE, SIDE))[:, :places, :places]
    wide = blurred.astype(np.float64)
    deviation = np.sqrt(np.maximum(_window_means(wide**2) - _window_means(wide) ** 2, 1e-9))
    best = (products / deviation[second]).reshape(len(first), -1).argmax(1)
    return best // places, best % places


def _design(blurred: Float32Array, second: Int64Array, rows: np.ndarray, columns: np.ndarray) -> Float32Array:
    """float32 [P, _CROP², 4]: a constant, the second image at these places, and its slopes across and down."""
    padded = np.pad(blurred, ((0, 0), (1, 1), (1, 1)), mode="edge")
    inside = np.arange(_CROP + 2)
    around = padded[second[:, None, None], rows[:, None, None] + inside[:, None], columns[:, None, None] + inside]
    design = np.ones((len(second), _CROP, _CROP, 4), np.float32)
    design[..., 1] = around[:, 1:-1, 1:-1]
    design[..., 2] = (around[:, 1:-1, 2:] - around[:, 1:-1, :-2]) / 2
    design[..., 3] = (around[:, 2:, 1:-1] - around[:, :-2, 1:-1]) / 2
    flat = design.reshape(len(second), -1, 4)
    flat[..., 1] = _standardised(flat[..., 1])
    return flat


def _window_means(values: np.ndarray) -> np.ndarray:
    """float64[P, 2 SHIFT + 1, 2 SHIFT + 1], means of all windows of the crop's size."""
    sums = np.pad(values.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    a, b = slice(0, -_CROP), slice(_CROP, None)
    means: np.ndarray = (sums[:, b, b] - sums[:, a, b] - sums[:, b, a] + sums[:, a, a]) / _CROP**2
    return means


def _standardised(values: Float32Array | np.ndarray) -> np.ndarray:
    """Rows [N, K] with mean 0 and standard deviation 1; zeros where there is no contrast."""
    centred = values - values.mean(1, keepdims=True)
    spread = np.sqrt((centred**2).mean(1, keepdims=True))
    standardised: np.ndarray = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9)
    return standardised
