"""The field shifts, one function each: what a device's own camera, its light and its place do to a picture.

Severe ones are meant to be as hard as levels 3 to 5 of CIFAR-10-C (Hendrycks and Dietterich, 2019), yet a person still
knows what is in the picture. Lengths are shares of the frame's shorter side, so that larger images suffer alike.

All take uint8 [N, H, W, 3] and a generator, from which each image gets its own circumstances, and return new images.
"""

from __future__ import annotations

import io

import numpy as np

from edge_sel.data.images import Float32Array, UInt8Array
from edge_sel.data.light import (
    clouds,
    count_electrons,
    downscale,
    expose,
    per_image,
    ramp,
    smear,
    soften,
    to_light,
)


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
