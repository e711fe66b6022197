"""Field shifts: what changes between the images a model was trained on and those of the device's own camera.

One function each: what the camera, its light and its place do to a picture. Severe ones are meant to be as hard as
levels 3 to 5 of CIFAR-10-C (Hendrycks and Dietterich, 2019), yet a person still knows what is in the picture. Lengths
are shares of the frame's shorter side, so that larger images suffer alike. All take uint8 [N, H, W, 3] and a generator,
from which each image gets its own circumstances, and return new images.

Pixels are decoded from sRGB to linear light, 0..1, changed there, digitised to 12 bits as a sensor would, and encoded
as 8-bit sRGB again.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

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


def to_light(images: UInt8Array) -> Float32Array:
    """8-bit sRGB to linear light, 1 is white."""
    return np.asarray(_TO_LIGHT[images])


def expose(light: Float32Array) -> UInt8Array:
    """Linear light, 1 is white, to 8-bit sRGB by way of a 12-bit sensor value."""
    return np.asarray(_TO_STORED[np.rint(light.clip(0, 1) * _ADC_STEPS).astype(np.int32)])


def count_electrons(
    light: Float32Array, full_well: float | Float32Array, read_noise: float, rng: np.random.Generator
) -> Float32Array:
    """What a sensor makes of ``light``: shot noise and read noise.

    Args:
        light: linear, 1 is white.
        full_well: electrons at white; the fewer, the noisier. A number, or one for each image [N, 1, 1, 1].
        read_noise: standard deviation in the dark, in electrons.
        rng: draws the noise.
    """
    electrons = rng.poisson(light * full_well) + rng.normal(0.0, read_noise, light.shape)
    return np.asarray((electrons / full_well).astype(np.float32))


def per_image(images: npt.NDArray[np.generic], rng: np.random.Generator, low: float, high: float) -> Float32Array:
    """One number in low..high for each image: float32 [N, 1, 1, 1]."""
    return rng.uniform(low, high, (len(images), 1, 1, 1)).astype(np.float32)


def ramp(images: npt.NDArray[np.generic], rng: np.random.Generator) -> Float32Array:
    """From 0 on one side of the frame to 1 on the other, each image in its own direction: [N, H, W, 1]."""
    angle = per_image(images, rng, 0, 2 * np.pi)
    down = np.linspace(-1, 1, images.shape[1], dtype=np.float32)[:, None, None]
    across = np.linspace(-1, 1, images.shape[2], dtype=np.float32)[None, :, None]
    ramp = np.sin(angle) * down + np.cos(angle) * across
    return np.asarray(0.5 + ramp / (2 * np.sqrt(2)), dtype=np.float32)


def clouds(images: npt.NDArray[np.generic], rng: np.random.Generator, cells: int) -> Float32Array:
    """A smooth random density in 0..1, about ``cells`` hills across the frame: [N, H, W, 1]."""
    heights = rng.random((len(images), cells, cells), dtype=np.float32)
    down, across = (_interpolate(cells, length) for length in images.shape[1:3])
    return np.asarray(down @ heights @ across.T)[..., None]


def _interpolate(points: int, length: int) -> Float32Array:
    """The [length, points] matrix that draws straight lines through equidistant points, first and last included."""
    position = np.linspace(0, points - 1, length) if length > 1 else np.array([(points - 1) / 2])
    return np.asarray(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(points))), dtype=np.float32)


def soften(light: Float32Array, side: Float32Array) -> Float32Array:
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


def smear(light: Float32Array, length: Float32Array, angle: Float32Array, radius: Float32Array) -> Float32Array:
    """Spread every point over a line with round ends: a disc is defocus, a thin line is motion; edges repeated.

    Args:
        light: [N, H, W, 3].
        length: of the line in pixels, 0 for a disc; [N, 1, 1, 1], as the others.
        angle: its direction in radians.
        radius: half its width in pixels, at least 0.5.
    """
    reach = int(np.ceil((length / 2 + radius).max(initial=0.5)))
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    length, angle, radius = (value[..., 0] for value in (length, angle, radius))
    along = np.cos(angle) * across + np.sin(angle) * down
    aside = np.cos(angle) * down - np.sin(angle) * across
    distance = np.hypot(along - along.clip(-length / 2, length / 2), aside)
    kernel = (radius + 0.5 - distance).clip(0, 1)
    kernel /= kernel.sum(axis=(1, 2), keepdims=True)
    height, width = light.shape[1:3]
    padded = np.pad(light, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="edge")
    result = np.zeros_like(light)
    for row in range(2 * reach + 1):
        for column in range(2 * reach + 1):
            share = kernel[:, row, column, None, None, None]
            result += share * padded[:, row : row + height, column : column + width]
    return result


def downscale(
    light: Float32Array, scale: Float32Array, down: Float32Array, across: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """The picture, smaller, somewhere in a frame of the same size.

    Args:
        light: [N, H, W, 3].
        scale: new size / old size; [N, 1, 1, 1], as the others.
        down: where it lies in the room that is left: 0 is the top, 1 the bottom.
        across: the same from left to right.

    Returns:
        light [N, H, W, 3], and how much of each pixel the picture covers, 0..1: [N, H, W, 1].
    """
    rows, row_cover = _shrink_axis(light.shape[1], scale, down)
    columns, column_cover = _shrink_axis(light.shape[2], scale, across)
    small = np.einsum("nih,njw,nhwc->nijc", rows, columns, light, optimize=True)
    return np.asarray(small, np.float32), (row_cover[:, :, None] * column_cover[:, None, :])[..., None]


def _shrink_axis(length: int, scale: Float32Array, place: Float32Array) -> tuple[Float32Array, Float32Array]:
    """The [N, length, length] weights of old pixels in new ones, and how much of each new pixel is covered."""
    scale, place = scale[..., 0], place[..., 0]
    start = place * (1 - scale) * length
    centre = np.arange(length, dtype=np.float32)[None, :, None] + 0.5
    old = (centre - start) / scale - 0.5
    weights = np.maximum(0, 1 - np.abs(old - np.arange(length, dtype=np.float32)) * scale)
    weights /= np.maximum(weights.sum(axis=2, keepdims=True), 1e-6)
    cover = (np.minimum(centre - start, start + scale * length - centre) + 0.5).clip(0, 1)
    return weights.astype(np.float32), cover[..., 0].astype(np.float32)


def low_light(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """A cheap camera in the dark: 8 to 25 % of the light, shot noise, read noise, a blue-green cast. Severe."""
    light = to_light(images) * per_image(images, rng, 0.08, 0.25)
    light *= np.concatenate(
        [
            per_image(images, rng, 0.80, 1.00),
            per_image(images, rng, 1.00, 1.10),
            per_image(images, rng, 1.00, 1.20),
        ],
        axis=3,
    )
    return expose(count_electrons(light, 400.0, 3.0, rng))


def field_camera(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """A camera in the field: 25 to 60 % of the light, falling off to one side, warm or cool, a little blur.

    Mild: a person has no trouble with it.
    """
    light = soften(to_light(images), per_image(images, rng, 0.05, 0.20))
    light *= per_image(images, rng, 0.25, 0.60)
    light *= 1 - per_image(images, rng, 0.20, 0.60) * ramp(images, rng)
    warmth = per_image(images, rng, -0.25, 0.25)
    light *= np.concatenate([1 + warmth, np.ones_like(warmth), 1 - warmth], axis=3)
    light += per_image(images, rng, 0.002, 0.008) * _normal(images, rng)
    return expose(light)


def fog(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Fog in patches: 20 to 80 % of the light is the veil's, grey to bluish; what is left of the contrast is noisy."""
    light = to_light(images)
    veil = per_image(images, rng, 0.60, 0.95)
    blue = per_image(images, rng, 0.00, 0.08)
    density = per_image(images, rng, 0.40, 0.60) + per_image(images, rng, 0.10, 0.20) * (2 * clouds(images, rng, 3) - 1)
    light = (1 - density) * light + density * veil * np.concatenate([1 - blue, np.ones_like(blue), 1 + blue], axis=3)
    return expose(light + per_image(images, rng, 0.003, 0.010) * _normal(images, rng))


def colour_cast(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """White balance gone wrong: red and blue 2 to 4 stops apart either way, green up to 0.7 stops off."""
    cool = per_image(images, rng, 0.0, 1.0) < 0.5
    stops = np.where(cool, -1, 1) * per_image(images, rng, 1.0, 2.0)
    gains = np.concatenate([stops, per_image(images, rng, -0.7, 0.7), -stops], axis=3)
    light = to_light(images) * per_image(images, rng, 0.5, 0.9) * np.exp2(gains)
    return expose(light.astype(np.float32))


def blur_noise(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Out of focus or moved while the shutter was open, at a high gain: discs of 3 to 5 % or lines of 8 to 20 %."""
    side = min(images.shape[1:3])
    moved = per_image(images, rng, 0.0, 1.0) < 0.5
    length = np.where(moved, side * per_image(images, rng, 0.08, 0.20), 0).astype(np.float32)
    disc = np.maximum(side * per_image(images, rng, 0.03, 0.05), 0.5)
    radius = np.where(moved, 0.5, disc).astype(np.float32)
    light = smear(to_light(images), length, per_image(images, rng, 0.0, np.pi), radius)
    light *= per_image(images, rng, 0.5, 0.9)
    return expose(count_electrons(light, per_image(images, rng, 80.0, 250.0), 2.0, rng))


def jpeg(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Compressed hard to save space or bandwidth: JPEG of quality 8 to 20 with halved colour, the grid at any place."""
    from PIL import Image

    result = np.empty_like(images)
    height, width = images.shape[1:3]
    for place, image in enumerate(images):
        top, left = rng.integers(0, 16, 2)  # pixels of a colour block
        framed = np.pad(image, [(top, 0), (left, 0), (0, 0)], mode="edge")
        file = io.BytesIO()
        Image.fromarray(framed).save(file, "JPEG", quality=int(rng.integers(8, 21)), subsampling="4:2:0")
        with Image.open(file) as decoded:
            result[place] = np.asarray(decoded)[top : top + height, left : left + width]
    return result


def background(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Framed anew: the picture at 60 to 80 % of its size, anywhere on a textured ground of two random colours."""
    light = to_light(images)
    mixture = (0.6 * clouds(images, rng, 3) + 0.4 * clouds(images, rng, 9)).clip(0, 1)
    ground = to_light(_colour(images, rng)) * mixture + to_light(_colour(images, rng)) * (1 - mixture)
    ground *= 1 + 0.15 * _normal(images, rng)
    where = (per_image(images, rng, 0.6, 0.8), per_image(images, rng, 0.0, 1.0), per_image(images, rng, 0.0, 1.0))
    small, cover = downscale(light, *where)
    return expose(cover * small + (1 - cover) * ground)


def _normal(images: UInt8Array, rng: np.random.Generator) -> Float32Array:
    return rng.standard_normal(images.shape, dtype=np.float32)


def _colour(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """A stored colour for each image, not too vivid: [N, 1, 1, 3]."""
    colour = rng.uniform(40, 216, (len(images), 1, 1, 1)) + rng.uniform(-40, 40, (len(images), 1, 1, 3))
    return np.rint(colour).astype(np.uint8)


SHIFTS: Mapping[str, Shift] = MappingProxyType(
    {kind.__name__: kind for kind in (low_light, field_camera, fog, colour_cast, blur_noise, jpeg, background)}
)


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
    if root.is_file():
        raise UsageError("the folder to write to is a file", where=root, fix="name a new folder")
    if root.is_dir() and any(root.iterdir()):
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
