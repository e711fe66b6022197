"""Field shifts: what changes between the images a model was trained on and those of the device's own camera.

A shift works on light, not on stored values: pixels are decoded from sRGB to linear light, dimmed, tinted and
made noisy as a sensor would, digitised to 12 bits, and encoded as 8-bit sRGB again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.images import Float32Array, UInt8Array
from edge_sel.errors import SetupError, UsageError

Shift: TypeAlias = Callable[[UInt8Array, np.random.Generator], UInt8Array]

_ADC_STEPS = 4095


def _srgb_tables() -> tuple[Float32Array, UInt8Array]:
    """Stored 8-bit value -> linear light 0..1, and 12-bit sensor value -> stored 8-bit value."""
    stored = np.arange(256) / 255
    linear = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    light = np.arange(_ADC_STEPS + 1) / _ADC_STEPS
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return linear.astype(np.float32), np.rint(255 * encoded).astype(np.uint8)


_TO_LIGHT, _TO_STORED = _srgb_tables()


def low_light(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """A cheap camera in the dark: 8 to 25 % of the light, shot noise, read noise, a blue-green cast.

    Severe: comparable to levels 4 and 5 of CIFAR-10-C.

    Args:
        images: uint8 [N, H, W, 3].
        rng: each image gets its own exposure, cast and noise.

    Returns:
        uint8 [N, H, W, 3].
    """
    full_well, read_noise = (
        400.0,
        3.0,
    )  # electrons: white at full exposure, and the standard deviation in the dark
    light = _TO_LIGHT[images] * _per_image(images, rng, 0.08, 0.25)
    light *= np.concatenate(
        [
            _per_image(images, rng, 0.80, 1.00),
            _per_image(images, rng, 1.00, 1.10),
            _per_image(images, rng, 1.00, 1.20),
        ],
        axis=3,
    )
    electrons = rng.poisson(light * full_well) + rng.normal(0.0, read_noise, images.shape)
    return _expose((electrons / full_well).astype(np.float32))


def field_camera(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """A camera in the field: 25 to 60 % of the light, falling off to one side, warm or cool, a little blur.

    Mild: a person has no trouble with it.

    Args:
        images: uint8 [N, H, W, 3].
        rng: each image gets its own exposure, direction of light, cast, blur and noise.

    Returns:
        uint8 [N, H, W, 3].
    """
    light = _blur(_TO_LIGHT[images], _per_image(images, rng, 0.05, 0.20))
    light *= _per_image(images, rng, 0.25, 0.60)
    light *= 1 - _per_image(images, rng, 0.20, 0.60) * _ramp(images, rng)
    warmth = _per_image(images, rng, -0.25, 0.25)
    light *= np.concatenate([1 + warmth, np.ones_like(warmth), 1 - warmth], axis=3)
    light += _per_image(images, rng, 0.002, 0.008) * rng.standard_normal(images.shape, dtype=np.float32)
    return _expose(light)


SHIFTS: Mapping[str, Shift] = MappingProxyType({"low_light": low_light, "field_camera": field_camera})


def apply_shift(name: str, image_set: ImageSet, seed: int) -> ImageSet:
    """``image_set`` as the shift ``name`` would have it.

    What happens to an image depends on ``seed`` and its id alone, so a subset of the shifted set equals the
    shifted subset.

    Raises:
        UsageError: there is no shift of that name.
    """
    if name not in SHIFTS:
        raise UsageError(f"no field shift named {name}", fix=f"one of {', '.join(SHIFTS)}")
    shift = SHIFTS[name]

    def function(images: UInt8Array, ids: Sequence[str]) -> UInt8Array:
        result = np.empty_like(images)
        for place, image_id in enumerate(ids):
            result[place : place + 1] = shift(images[place : place + 1], _generator(seed, image_id))
        return result

    return image_set.map(function)


def write_folder(image_set: ImageSet, root: str | os.PathLike[str]) -> None:
    """Write every image to ``root/<class>/<name>.png``, a layout that ``load_folder`` reads.

    The name is the sample's id without its class folder and suffix, numbered where two would be the same.

    Raises:
        UsageError: ``root`` holds something already, or a class name cannot be the name of a folder.
        SetupError: the folder cannot be written.
    """
    from PIL import Image

    root = Path(root)
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise UsageError("the folder to write to is not empty", where=root, fix="name a new folder")
    for name in image_set.classes:
        if name.startswith(".") or any(mark in name for mark in "/\\\0") or not name.strip():
            raise UsageError(f"a class name that cannot name a folder, {name!r}", where=root)
    taken: set[Path] = set()
    try:
        for index, (image_id, label) in enumerate(zip(image_set.ids, image_set.labels, strict=True)):
            path = _free_path(root / image_set.classes[label], image_id, taken)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image_set.read([index])[0]).save(path)
    except OSError as error:
        what = f"cannot write images, {(error.strerror or str(error)).lower()}"
        raise SetupError(what, where=root, fix="check space and permissions") from error


def _per_image(images: UInt8Array, rng: np.random.Generator, low: float, high: float) -> Float32Array:
    """One number in low..high for each image: float32 [N, 1, 1, 1]."""
    return rng.uniform(low, high, (len(images), 1, 1, 1)).astype(np.float32)


def _ramp(images: UInt8Array, rng: np.random.Generator) -> Float32Array:
    """From 0 on one side of the frame to 1 on the other, each image in its own direction: [N, H, W, 1]."""
    angle = _per_image(images, rng, 0, 2 * np.pi)
    down = np.linspace(-1, 1, images.shape[1], dtype=np.float32)[:, None, None]
    across = np.linspace(-1, 1, images.shape[2], dtype=np.float32)[None, :, None]
    ramp = np.sin(angle) * down + np.cos(angle) * across
    return np.asarray(0.5 + ramp / (2 * np.sqrt(2)), dtype=np.float32)


def _blur(light: Float32Array, side: Float32Array) -> Float32Array:
    """Convolve rows and columns with (side, 1 - 2 side, side), edges repeated."""
    for axis in (1, 2):
        border = [(0, 0)] * 4
        border[axis] = (1, 1)
        padded = np.pad(light, border, mode="edge")
        before, after = (
            padded.take(range(light.shape[axis]), axis),
            padded.take(range(2, light.shape[axis] + 2), axis),
        )
        light = (1 - 2 * side) * light + side * (before + after)
    return light


def _expose(light: Float32Array) -> UInt8Array:
    """Linear light, 1 is white, to 8-bit sRGB by way of a 12-bit sensor value."""
    return np.asarray(_TO_STORED[np.rint(light.clip(0, 1) * _ADC_STEPS).astype(np.int32)])


def _generator(seed: int, image_id: str) -> np.random.Generator:
    key = hashlib.blake2b(f"{seed} {image_id}".encode("utf-8", "surrogatepass"), digest_size=16)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key.digest(), "little")))


def _free_path(folder: Path, image_id: str, taken: set[Path]) -> Path:
    parts = image_id.split("/")
    if parts[0] == folder.name and len(parts) > 1:
        parts = parts[1:]
    stem = Path("_".join(parts)).stem.lstrip(".") or "image"
    path, number = folder / f"{stem}.png", 2
    while path in taken:
        path, number = folder / f"{stem}-{number}.png", number + 1
    taken.add(path)
    return path
