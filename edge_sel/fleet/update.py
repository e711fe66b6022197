"""What a device sends: one safetensors file with sums of its images' features, signed beside it like an expert.

Nothing of a single image is in it but what sums of few images show; so there is a least number of images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypedDict

import numpy as np

from edge_sel.arrays import read_tensors, tensor_bytes, tensor_notes
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.engines.base import Engine
from edge_sel.errors import BadInputError, DataError
from edge_sel.files import read_regular, write_durably
from edge_sel.pack.manifest_json import MOST_CLASSES
from edge_sel.pack.plan_kinds import RIDGE
from edge_sel.pack.reader import Pack
from edge_sel.pack.signatures import Signers, TrustedKeys, add_signature, find_signers
from edge_sel.pack.sums import ServerSums
from edge_sel.pack.weights import read_beside, signatures_of
from edge_sel.schema import Longest, SchemaError, Within, checked, parse_json
from edge_sel.sel.feature_sums import CONSTANT, standardised
from edge_sel.sel.federated import DeviceSums, clip_rows, device_sums, gaussian_sigma, sums_sensitivity

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = "edge-sel-update-1"
COLUMNS = 1024
"""Most columns of the features that sums are taken of; more of them are projected to so many."""
SPREAD = 4
"""Columns that each feature is spread over."""
LEAST_IMAGES = 20
LEAST_OF_CLASS = 5
"""Of a class with a single image ``ΦᵀT`` is that image's features; so fewer are not sent."""
MOST_IMAGES = 10**7
MOST_BYTES = 64 << 20
CLIP = 1.5
"""Longest row, in units of the longest of the server's images."""
CHUNK = 4
SLACK = 1e-6
"""Relative, for rounding."""
LEAST_EPSILON, MOST_EPSILON = 1e-3, 100.0
LEAST_DELTA, MOST_DELTA = 1e-12, 0.5
_Number = Annotated[float, Within(0, 1e15)]
_Name = Annotated[str, Longest(400)]


class _Privacy(TypedDict):
    epsilon: Annotated[float, Within(LEAST_EPSILON, MOST_EPSILON)]
    delta: Annotated[float, Within(LEAST_DELTA, MOST_DELTA)]


class _Told(TypedDict):
    """Of the header."""

    format: str
    pack: Annotated[str, Longest(64)]
    nonce: Annotated[str, Longest(64)]
    classes: Annotated[list[_Name], Longest(MOST_CLASSES)]
    images: Annotated[int, Within(1, MOST_IMAGES)]
    energy_j: _Number | None
    energy_source: _Name
    privacy: _Privacy | None


class Update(NamedTuple):
    """A device's sums, checked."""

    sums: DeviceSums
    classes: tuple[str, ...]
    """Those of the pack, then new ones."""
    images: int
    device: str
    """Fingerprint of its key; of an unsigned update a hash of the file."""
    signed: bool
    energy_j: float | None
    energy_source: str
    privacy: dict[str, float] | None
    bytes: int


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


def features_of(pack: Pack, images: ImageSet, engine: Engine) -> np.ndarray:
    """float32 [N, F], under the pack's own statistics."""
    backbone, model = engine.backbone(pack, RIDGE, pack.weights()), pack.manifest.model
    assert backbone is not None
    parts = [
        backbone(normalise(images.read(np.arange(start, min(start + CHUNK, len(images)))), model.mean, model.std))
        for start in range(0, len(images), CHUNK)
    ]
    return np.concatenate(parts)


def make_update(
    pack: Pack, features: np.ndarray, labels: np.ndarray, classes: Sequence[str], nonce: str, *,
    energy: tuple[float | None, str] = (None, "unavailable"), privacy: tuple[float, float] | None = None,
    rng: np.random.Generator | None = None,
) -> bytes:  # fmt: skip
    """The content of an update.

    Args:
        pack: that the device has.
        features: float[N, F], of ``features_of``.
        labels: int[N].
        classes: of the labels: those of the pack, then new ones.
        nonce: a text that no other update has.
        energy: joules that it took, and their source.
        privacy: (ε, δ) of the noise that is added; None for none.
        rng: of the noise: one that nobody can guess.

    Raises:
        DataError: there are too few images; classes of which there are too few are left out.
    """
    known = np.isfinite(features).all(1)
    counts = np.bincount(labels[known], minlength=len(classes))
    known &= counts[labels] >= LEAST_OF_CLASS
    if known.sum() < LEAST_IMAGES:
        fix = f"at least {LEAST_IMAGES} images, and {LEAST_OF_CLASS} of a class, else sums show single ones"
        raise DataError(f"an update of {known.sum()} images", fix=fix)
    sums = device_sums(rows_of(pack, np.where(known[:, None], features, 0))[known], labels[known], len(classes))
    if privacy is not None:
        assert rng is not None
        sigma = gaussian_sigma(*privacy, sums_sensitivity(longest_row(pack)))
        sums = _with_noise(sums, sigma, rng)
    size = len(sums.gram)
    tensors = {
        "counts": sums.counts, "gram": sums.gram[np.triu_indices(size)], "right": sums.right,
    }  # fmt: skip
    told: _Told = {
        "format": FORMAT, "pack": pack.digest, "nonce": nonce, "classes": list(classes), "images": int(known.sum()),
        "energy_j": energy[0], "energy_source": energy[1],
        "privacy": None if privacy is None else {"epsilon": privacy[0], "delta": privacy[1]},
    }  # fmt: skip
    return tensor_bytes(tensors, {"update": json.dumps(told)})


def _with_noise(sums: DeviceSums, sigma: float, rng: np.random.Generator) -> DeviceSums:
    """Gaussian noise on all that is sent: a symmetric matrix has that of its triangle."""
    noise = np.triu(rng.normal(0, sigma, sums.gram.shape))
    return DeviceSums(
        sums.counts + rng.normal(0, sigma, sums.counts.shape), sums.gram + noise + np.triu(noise, 1).T,
        sums.right + rng.normal(0, sigma, sums.right.shape),
    )  # fmt: skip


def write_update(path: Path, content: bytes, key: Ed25519PrivateKey | None) -> None:
    """Write it, and its signature beside it.

    Raises:
        SetupError: it cannot be written.
    """
    write_durably(path, content)
    beside = signatures_of(path)
    if key is not None:
        write_durably(beside, add_signature("update", content, None, key, path))
    else:
        beside.unlink(missing_ok=True)  # of an earlier one


def read_update(path: Path, pack: Pack, devices: TrustedKeys | None) -> Update:
    """Read and check an update, before anything is added to anything.

    Args:
        path: of the file.
        pack: that it must be of.
        devices: public keys of which one must have signed it; None: it need not be signed.

    Raises:
        BadInputError: it is none, of another pack, damaged, out of its bounds, or not signed as required.
    """
    try:
        content = read_regular(path, MOST_BYTES)
        signers: Signers | None = find_signers("update", content, read_beside(path), devices, path)
        told: _Told = checked(_Told, parse_json(tensor_notes(content).get("update", "null")))
        if told["format"] != FORMAT:
            raise ValueError("it is of another format")
        if told["pack"] != pack.digest:
            raise ValueError("it is of another pack")
        tensors = read_tensors(content)
        sums = _sums_of(tensors, told, pack)
    except OSError as error:
        raise BadInputError("the update cannot be read", where=f"{path}: {error}") from error
    except (ValueError, SchemaError, KeyError) as error:
        raise BadInputError(f"the update cannot be used: {str(error)[:200]}", where=path) from error
    device = signers.fingerprints[0] if signers and devices is not None else hashlib.sha256(content).hexdigest()
    asked = told["privacy"]
    privacy = None if asked is None else {"epsilon": asked["epsilon"], "delta": asked["delta"]}
    return Update(
        sums, tuple(told["classes"]), told["images"], device, devices is not None, told["energy_j"],
        told["energy_source"], privacy, len(content),
    )  # fmt: skip


def _sums_of(tensors: dict[str, np.ndarray], told: _Told, pack: Pack) -> DeviceSums:
    """ValueError unless they are sums of so many clipped rows."""
    known, classes = pack.manifest.model.classes, told["classes"]
    if tuple(classes[: len(known)]) != known or len(set(classes)) != len(classes):
        raise ValueError("its classes are not the pack's, nor these and more")
    if not all(name.isprintable() and name.strip() == name and name for name in classes):
        raise ValueError("its classes have names that nobody can read")
    size = min(pack.head_features, COLUMNS) + 1
    shapes = {"counts": (len(classes),), "gram": (size * (size + 1) // 2,), "right": (size, len(classes))}
    if {name: array.shape for name, array in tensors.items()} != shapes:
        raise ValueError("its sums are of other features")
    if any(array.dtype.kind != "f" or not np.isfinite(array).all() for array in tensors.values()):
        raise ValueError("it holds numbers that are not finite")
    gram = np.zeros((size, size))
    gram[np.triu_indices(size)] = tensors["gram"].astype(np.float64)
    gram += np.triu(gram, 1).T
    sums = DeviceSums(tensors["counts"].astype(np.float64), gram, tensors["right"].astype(np.float64))
    images, length = told["images"], longest_row(pack)
    asked = told["privacy"]
    if images < LEAST_IMAGES:
        raise ValueError(f"sums of fewer than {LEAST_IMAGES} images")
    if asked is None:
        _check_sums(sums, images, length, SLACK)
    else:  # with noise nothing fits exactly, but it is not larger than that explains
        sigma = gaussian_sigma(asked["epsilon"], asked["delta"], sums_sensitivity(length))
        most = 8 * sigma + images * (length**2 + CONSTANT**2)
        if max(np.abs(gram).max(), np.abs(sums.right).max(), np.abs(sums.counts).max()) > most:
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
