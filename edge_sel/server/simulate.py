"""Field conditions that a server makes up: each is one place, seen by its own cameras, or one style of picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from edge_sel.data.dataset import ImageSet
from edge_sel.data.split import stratified_split
from edge_sel.server.cameras import Cameras, Place, draw_place, take_pictures
from edge_sel.server.styles import STYLES, restyle

_AT_ONCE = 500


def look(place: Place, images: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Images uint8 [N, H, W, 3] as the place's cameras see them."""
    cameras = place.cameras(len(images), generator)
    taken = [images[:0]]  # there may be none
    for start in range(0, len(images), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        pixels = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float() / 255
        seen = take_pictures(pixels, Cameras(*(field[rows] for field in cameras)), generator)
        taken.append((255 * seen).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(taken)


def simulate_place(images: ImageSet, place: Place, generator: torch.Generator) -> ImageSet:
    """All of the images as they look there."""
    return _with(images, look(place, _pixels(images), generator))


def simulate_fields(
    training: ImageSet, validation: ImageSet, places: int, seed: int
) -> Iterator[tuple[ImageSet, ImageSet]]:
    """Both sets as they are, then as they look in so many places.

    Every second place has cameras of strength 0.5 to 1.5, the others a style. In one of two pairs of places there is a
    quarter of the images to train on.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    yield training, validation
    for number in range(places):
        few = stratified_split(training.labels, 0.25, rng)[1]  # of every class: a single image trains nothing
        seen = training.subset(few) if number // 2 % 2 else training
        if number % 2:
            style = STYLES[number // 2 % len(STYLES)]
            pair = [_with(images, restyle(style, _pixels(images), rng)) for images in (seen, validation)]
        else:
            place = draw_place(0.5 + number / max(places - 1, 1), generator)
            pair = [simulate_place(images, place, generator) for images in (seen, validation)]
        yield pair[0], pair[1]


def _pixels(images: ImageSet) -> np.ndarray:
    return images.read(np.arange(len(images)))


def _with(images: ImageSet, pixels: np.ndarray) -> ImageSet:
    return ImageSet.from_arrays(pixels, images.labels, images.classes, images.ids)
