"""Light and sensors: what the field shifts are made of.

Pixels are decoded from sRGB to linear light, 0..1, changed there, digitised to 12 bits as a sensor would, and encoded
as 8-bit sRGB again. Images are [N, H, W, 3]; whatever is drawn at random is drawn for each image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_sel.data.images import Float32Array, UInt8Array

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
