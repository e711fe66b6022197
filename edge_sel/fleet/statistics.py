"""A device's sums: of the features of its images, by which all devices together fit one head in closed form.

Nothing of a single image is in them but what sums of few images show; so there is a least number of images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.engines.base import Engine
from edge_sel.errors import BadInputError
from edge_sel.fleet.header import LEAST_OF_CLASS, Header, Origin, Privacy, update_bytes, usable_rows
from edge_sel.pack.plan_kinds import RIDGE
from edge_sel.pack.reader import Pack
from edge_sel.pack.sums import ServerSums
from edge_sel.sel.feature_sums import CONSTANT, standardised
from edge_sel.sel.federated import DeviceSums, clip_rows, device_sums, gaussian_sigma, sums_sensitivity

COLUMNS = 1024
"""Most columns of the features that sums are taken of; more of them are projected to so many."""
SPREAD = 4
"""Columns that each feature is spread over."""
CLIP = 1.5
"""Longest row, in units of the longest of the server's images."""
CHUNK = 4
SLACK = 1e-6
"""Relative, for rounding."""


def require_sums(pack: Pack) -> ServerSums:
    """The server's sums; BadInputError where the pack has none: nothing could be standardised."""
    if pack.sums is None:
        raise BadInputError("the pack has no sums of the server's features", where=pack.path,
                            fix="export it again; its head must have a closed form")  # fmt: skip
    return pack.sums


def projection_of(pack: Pack) -> np.ndarray | None:
    """float64 [F, COLUMNS], the same for every device with this pack; None where features are few enough.

    Each feature goes to ``SPREAD`` columns with a sign, which a hash of its number tells.
    """
    return _projection(pack.digest, pack.head_features, COLUMNS)


@lru_cache(maxsize=2)
def _projection(digest: str, features: int, columns: int) -> np.ndarray | None:
    if features <= columns:
        return None
    made, width = np.zeros((features, columns)), columns // SPREAD
    for feature in range(features):
        number = feature.to_bytes(8, "little")
        hashed = hashlib.blake2b(number, digest_size=8 * SPREAD, key=digest.encode()).digest()
        numbers = np.frombuffer(hashed, "<u4")
        for block, (place, sign) in enumerate(zip(numbers[::2], numbers[1::2], strict=True)):
            made[feature, block * width + int(place) % width] += (1 if sign & 1 else -1) / SPREAD**0.5
    return made


def rows_of(pack: Pack, features: np.ndarray) -> np.ndarray:
    """float64 [N, D] of features [N, F]: standardised, projected, clipped."""
    sums, projection = require_sums(pack), projection_of(pack)
    rows = standardised(features, sums.standard)
    rows = rows if projection is None else rows @ projection
    return np.asarray(clip_rows(rows, longest_row(pack)))


def longest_row(pack: Pack) -> float:
    """What rows are clipped to: an image that is much longer than any of the server's does not count more."""
    sums, projection = require_sums(pack), projection_of(pack)
    rows = sums.examples.features.astype(np.float64)
    rows = rows if projection is None else rows @ projection
    return CLIP * float(np.sqrt((rows**2).sum(1)).max(initial=1e-6))


def private_row(pack: Pack) -> float:
    """What rows are clipped to where noise is added: the length of a usual image of the server's."""
    rows = require_sums(pack).examples.features.astype(np.float64)
    projection = projection_of(pack)
    rows = rows if projection is None else rows @ projection
    return float(np.median(np.sqrt((rows**2).sum(1)))) if len(rows) else 1.0


def noise_of(pack: Pack, privacy: Mapping[str, float] | None) -> float:
    """Standard deviation of the noise on each number of an update; 0 without any."""
    if privacy is None:
        return 0.0
    return gaussian_sigma(privacy["epsilon"], privacy["delta"], sums_sensitivity(private_row(pack)))


def features_of(
    pack: Pack, images: ImageSet, engine: Engine, between: Callable[[int], None] = lambda left: None
) -> np.ndarray:
    """float32 [N, F], under the pack's own statistics; ``between`` is told before every few how many are left."""
    backbone, model = engine.backbone(pack, RIDGE, pack.weights()), pack.manifest.model
    assert backbone is not None
    parts = []
    for start in range(0, len(images), CHUNK):
        between(len(images) - start)
        rows = np.arange(start, min(start + CHUNK, len(images)))
        parts.append(backbone(normalise(images.read(rows), model.mean, model.std)))
    return np.concatenate(parts)


def make_statistics(
    pack: Pack, features: np.ndarray, labels: np.ndarray, classes: Sequence[str], origin: Origin, *,
    privacy: tuple[float, float] | None = None, rng: np.random.Generator | None = None,
) -> bytes:  # fmt: skip
    """The content of an update. With noise it holds sums by class alone: ``ΦᵀΦ`` would need too much of it.

    Args:
        pack: that the device has.
        features: float[N, F], of ``features_of``.
        labels: int[N].
        classes: of the labels: those of the pack, then new ones.
        origin: nonce and joules.
        privacy: (ε, δ) of the noise that is added; None for none.
        rng: of the noise: one that nobody can guess.

    Raises:
        DataError: there are too few images; classes of which there are too few are left out.
    """
    used = usable_rows(labels, np.isfinite(features).all(1), len(classes))
    rows = rows_of(pack, features[used])
    if privacy is not None:
        assert rng is not None
        sums = device_sums(np.asarray(clip_rows(rows, private_row(pack))), labels[used], len(classes))
        sigma = noise_of(pack, {"epsilon": privacy[0], "delta": privacy[1]})
        tensors = {name: value + rng.normal(0, sigma, value.shape)
                   for name, value in (("counts", sums.counts), ("right", sums.right))}  # fmt: skip
    else:
        sums = device_sums(rows, labels[used], len(classes))
        triangle = sums.gram[np.triu_indices(len(sums.gram))]
        tensors = {"counts": sums.counts, "gram": triangle, "right": sums.right}
    noise: Privacy | None = None if privacy is None else {"epsilon": privacy[0], "delta": privacy[1]}
    return update_bytes(pack, "statistics", origin, tensors, classes, int(used.sum()), privacy=noise)


def sums_of(tensors: Arrays, header: Header, pack: Pack) -> DeviceSums:
    """ValueError unless they are sums of so many clipped rows; without ``ΦᵀΦ``, which is 0 then, if noise was added."""
    size, classes = min(pack.head_features, COLUMNS) + 1, len(header["classes"])
    asked = header["privacy"]
    shapes: dict[str, tuple[int, ...]] = {"counts": (classes,), "right": (size, classes)}
    if asked is None:
        shapes["gram"] = (size * (size + 1) // 2,)
    if {name: array.shape for name, array in tensors.items()} != shapes:
        raise ValueError("its sums are of other features")
    if any(array.dtype.kind != "f" or not np.isfinite(array).all() for array in tensors.values()):
        raise ValueError("it holds numbers that are not finite")
    gram = np.zeros((size, size))
    if asked is None:
        gram[np.triu_indices(size)] = tensors["gram"].astype(np.float64)
        gram += np.triu(gram, 1).T
    sums = DeviceSums(tensors["counts"].astype(np.float64), gram, tensors["right"].astype(np.float64))
    if asked is None:
        _check_sums(sums, header["images"], longest_row(pack), SLACK)
        return sums
    # with noise nothing fits exactly, but it is not larger than that explains
    sigma = noise_of(pack, {"epsilon": asked["epsilon"], "delta": asked["delta"]})
    most = 8 * sigma + header["images"] * max(private_row(pack), CONSTANT, 1.0)
    if max(np.abs(sums.right).max(), np.abs(sums.counts).max()) > most:
        raise ValueError("its numbers are larger than so many images and the noise explain")
    return sums


def _check_sums(sums: DeviceSums, images: int, length: float, slack: float) -> None:
    counts, gram, right = sums
    if ((counts > SLACK) & (counts < LEAST_OF_CLASS - SLACK)).any():
        raise ValueError(f"it has classes of fewer than {LEAST_OF_CLASS} images")
    if (
        (counts < 0).any()
        or abs(counts.sum() - images) > slack * images
        or np.abs(counts - np.rint(counts)).max() > slack
    ):
        raise ValueError("its counts are not those of so many images")
    if abs(gram[-1, -1] - CONSTANT**2 * images) > slack * images * CONSTANT**2:
        raise ValueError("its sums are not of so many images")
    if np.abs(right[-1] - CONSTANT * counts).max() > slack * CONSTANT * images:
        raise ValueError("its sums and its counts disagree")
    diagonal = np.diag(gram)
    if (diagonal < -slack).any() or diagonal[:-1].sum() > (1 + slack) * images * length**2:
        raise ValueError("its features are longer than any image's")
    bound = np.sqrt(np.outer(np.maximum(diagonal, 0), np.maximum(diagonal, 0)))
    if (np.abs(gram) > (1 + slack) * bound + slack * images).any():
        raise ValueError("its sums are none of any images")
    if (np.sqrt((right[:-1] ** 2).sum(0)) > (1 + slack) * counts * length + slack * images).any():
        raise ValueError("its classes have features longer than any image's")
    if np.abs(right[:-1].sum(1) * CONSTANT - gram[:-1, -1]).max() > slack * images * max(length, 1.0) * CONSTANT:
        raise ValueError("its sums and its classes disagree")
