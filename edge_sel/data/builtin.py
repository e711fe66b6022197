"""A small set of real images that ships with the package: the UCI handwritten digits.

"Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49, licensed CC BY 4.0. These are the 1,797 images of its test part,
8 x 8 pixels with ink levels 0 to 16. Changed here: drawn as dark ink on light paper and enlarged to 16 x 16.
"""

from __future__ import annotations

from importlib import resources
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_sel.data.dataset import ImageSet
from edge_sel.data.images import UInt8Array
from edge_sel.data.shifts import apply_shift

PARTS = ("pretrain", "field", "test")
_PAPER, _INK = 240, 20


RELIT = "built-in handwritten digits, re-lit as by a field camera"
"""How a run names them."""


def load_digits(part: Literal["pretrain", "field", "test"]) -> ImageSet:
    """One of three fixed, disjoint, stratified parts of the digits: 900, 500 and 397 images.

    All are clean. To play the device's camera, apply the ``field_camera`` shift to ``field`` and ``test``.

    Returns:
        images of 16 x 16 pixels in classes "0" … "9".

    Raises:
        ValueError: no such part.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part}")
    asset = resources.files("edge_sel.data").joinpath("assets/digits.npz")
    with asset.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        rows = np.flatnonzero(arrays["part"] == PARTS.index(part))
        ink, labels = arrays["images"][rows], arrays["labels"][rows]
    ids = [f"digits/{row:04d}" for row in rows]
    return ImageSet.from_arrays(_draw(ink), labels, [str(digit) for digit in range(10)], ids)


def load_relit(part: Literal["pretrain", "field", "test"]) -> ImageSet:
    """The same part as a field camera would see it: the images of a run without ``--data``."""
    return apply_shift("field_camera", load_digits(part), seed=0)


def _draw(ink: UInt8Array) -> UInt8Array:
    """Ink levels 0..16, uint8 [N, 8, 8], as uint8 [N, 16, 16, 3] dark on light, enlarged bilinearly."""
    enlarge = _bilinear(8, 16)
    grey = _PAPER - (_PAPER - _INK) / 16 * (enlarge @ ink.astype(np.float64) @ enlarge.T)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=3)


def _bilinear(old: int, new: int) -> npt.NDArray[np.float64]:
    """The [new, old] matrix of linear interpolation between pixel centres, edges repeated."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(old))))
