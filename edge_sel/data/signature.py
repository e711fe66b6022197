"""What a set of images looks like, in some eighty numbers that show no image: light, colours, sharpness, noise.

A server fits its simulated cameras to them (``server/expert.py``). They are statistics of the responses to the
3 x 3 filters of the discrete cosine transform, at full and at half resolution, per colour: an early layer that no
training changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NamedTuple, TypedDict

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.errors import BadInputError
from edge_sel.files import read_regular, write_durably
from edge_sel.schema import Within, checked, parse_json

FORMAT = "edge-sel-signature-1"
LARGEST = 1 << 16
MOST = 1e6
"""Of a value; those of any images are smaller by far."""
IMAGES = 512
"""As many are looked at: more change the numbers less than another day would."""

_AT_ONCE = 2**18
"""Pixels of a colour that are filtered at once: a device has room for tens of megabytes, not for gigabytes."""
_PERCENTILES = (2, 25, 50, 75, 98)
_SMALLEST = 1e-5
"""Added to energies before their logarithm: less is rounding of 8-bit pixels."""


class Signature(NamedTuple):
    """The numbers, and what they were taken from."""

    values: np.ndarray
    """float64 [K]; see ``measure``."""
    size: tuple[int, int]
    """Height and width of the images, pixels."""
    images: int
    """How many were looked at."""


def take_signature(images: ImageSet, rng: np.random.Generator) -> Signature:
    """Of at most ``IMAGES`` random ones."""
    chosen = np.sort(rng.permutation(len(images))[:IMAGES])
    return Signature(measure(images.read(chosen)), images.size, len(chosen))


def measure(pixels: np.ndarray) -> np.ndarray:
    """The numbers of images, uint8 [N, H, W, 3], H and W at least 6.

    Per colour: mean and spread (over the images) of brightness, its percentiles over all pixels; per filter and
    resolution the mean logarithm of the energy; how alike the colours are; how different the images' sharpness is.
    """
    count = max(1, _AT_ONCE // (pixels.shape[1] * pixels.shape[2]))
    parts = [_of_each(pixels[start : start + count]) for start in range(0, len(pixels), count)]
    brightness, *energies = (np.concatenate(part) for part in zip(*parts, strict=True))
    numbers = [brightness.mean(0), brightness.std(0), _percentiles(pixels).ravel(), _likeness(brightness)]
    for energy in energies:
        numbers += [np.log(energy.mean(0) + _SMALLEST).ravel() / 2]
        numbers += [np.log(energy.sum(2) + _SMALLEST).std(0)]
    return np.concatenate(numbers).astype(np.float64)


def _of_each(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each image: mean brightness [N, 3], energies [N, 3, 8] at full and at half resolution."""
    values = pixels.astype(np.float32) / 255
    return values.mean((1, 2)), _energies(values), _energies(_halved(values))


def _percentiles(pixels: np.ndarray) -> np.ndarray:
    """Of all pixels, 0..1 [percentile, colour], from their histograms: no copy of the pixels is made."""
    levels = np.arange(256) / 255
    ranks = np.array(_PERCENTILES) / 100 * (pixels[..., 0].size - 1)
    low, share = np.floor(ranks), ranks % 1
    colours = []
    for colour in range(3):
        counts = np.zeros(256, np.int64)
        for image in pixels:  # counting casts what it is given to 64 bits
            counts += np.bincount(image[..., colour].ravel(), minlength=256)
        below = np.cumsum(counts)
        at, after = (levels[np.minimum(np.searchsorted(below, rank, "right"), 255)] for rank in (low, low + 1))
        colours.append(at + share * (np.where(share > 0, after, at) - at))
    return np.stack(colours, axis=1)


def _halved(values: np.ndarray) -> np.ndarray:
    """Mean over 2 x 2 pixels."""
    n, height, width, colours = values.shape
    even = values[:, : height // 2 * 2, : width // 2 * 2]
    halved: np.ndarray = even.reshape(n, height // 2, 2, width // 2, 2, colours).mean((2, 4))
    return halved


def _energies(values: np.ndarray) -> np.ndarray:
    """Mean square of the response of each image [N], colour [3] and filter [8]: all but the mean."""
    basis = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    height, width = values.shape[1] - 2, values.shape[2] - 2
    rows = [sum(b[k] * values[:, k : k + height] for k in range(3)) for b in basis]
    both = [[sum(b[k] * row[:, :, k : k + width] for k in range(3)) for b in basis] for row in rows]
    energy = [(response**2).mean((1, 2)) for responses in both for response in responses]
    return np.stack(energy[1:], axis=2)


def _likeness(colours: np.ndarray) -> np.ndarray:
    """Correlations [3] of the images' mean red, green and blue; 0 where one does not vary."""
    centred = colours - colours.mean(0)
    unit = centred / (np.sqrt((centred**2).sum(0)) + _SMALLEST)
    return np.array([unit[:, a] @ unit[:, b] for a, b in ((0, 1), (0, 2), (1, 2))])


def write_signature(path: Path, signature: Signature) -> None:
    """JSON of about a kilobyte."""
    content = {
        "format": FORMAT,
        "size": list(signature.size),
        "images": signature.images,
        "values": [float(f"{value:.5g}") for value in signature.values],
    }
    write_durably(path, (json.dumps(content) + "\n").encode())


class _SignatureFile(TypedDict):
    size: tuple[Annotated[int, Within(1, 4096)], Annotated[int, Within(1, 4096)]]
    images: Annotated[int, Within(1, 1e12)]
    values: list[Annotated[float, Within(-MOST, MOST)]]


def read_signature(path: Path) -> Signature:
    """Read it back.

    Raises:
        BadInputError: not a signature, or one of another version.
    """
    try:
        content = parse_json(read_regular(path, LARGEST))
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise ValueError(f"its format is {str(content.get('format'))[:20]!r}, not {FORMAT!r}")
        found = checked(_SignatureFile, content)
        if len(found["values"]) != LENGTH:
            raise ValueError(f"it does not hold {LENGTH} numbers")
        return Signature(np.array(found["values"], np.float64), found["size"], found["images"])
    except OSError as error:
        raise BadInputError("the signature cannot be read", where=f"{path}: {error.strerror}") from error
    except ValueError as error:
        fix = "make one with `edge-sel signature`"
        raise BadInputError(f"not a signature: {error}", where=path, fix=fix) from error


LENGTH = len(measure(np.zeros((1, 8, 8, 3), np.uint8)))
