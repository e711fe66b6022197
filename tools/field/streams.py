"""Field sets as they pile up on a device: most images are like the server's or like one another.

``stream``: 85 % as the server knows them, 15 % as a field camera sees them. ``bursts``: the same shares of scenes, each
of them five nearly equal frames. Both are judged by shifted and by familiar images, the same ones.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.shifts import apply_shift, write_folder

STREAMS = ("stream", "bursts")
CAMERAS = ("low_light", "fog", "blur_noise")
"""By turns, with the seed."""
SHIFTED = 0.15
PER_CLASS, JUDGED_PER_CLASS = 800, 100
FRAMES = 5
FAMILIAR = "-familiar"
"""Behind the name of a part: the same images as the server knows them."""


def prepare(name: str, seed: int, unused: ImageSet, test: ImageSet, per_class: int, folder: Path) -> None:
    """Write the field images, and those to judge by: ``val`` from what pretraining did not use, ``test``."""
    half = folder.with_suffix(".part")
    shutil.rmtree(half, ignore_errors=True)
    rng, camera = np.random.default_rng(seed), CAMERAS[seed % len(CAMERAS)]
    order = [rng.permutation(np.flatnonzero(unused.labels == c)) for c in range(len(unused.classes))]
    field = unused.subset(np.concatenate([members[:PER_CLASS] for members in order]))
    val = unused.subset(np.concatenate([members[PER_CLASS : PER_CLASS + JUDGED_PER_CLASS] for members in order]))
    if name == "bursts":
        field = field.subset(rng.permutation(len(field))[: len(field) // FRAMES])
    seen = _partly(field, camera, seed, rng)
    write_folder(_burst(seen, rng) if name == "bursts" else seen, half / "field")
    chosen = np.concatenate([np.flatnonzero(test.labels == c)[:per_class] for c in range(len(test.classes))])
    for number, (part, images) in enumerate((("val", val), ("test", test.subset(chosen))), start=1):
        for kind, judged in (("", apply_shift(camera, images, 3 * seed + number)), (FAMILIAR, images)):
            pixels = judged.read(np.arange(len(judged)))
            np.savez(half / f"{part}{kind}.npz", images=pixels, labels=judged.labels, classes=np.array(judged.classes))
    half.rename(folder)


def _partly(images: ImageSet, camera: str, seed: int, rng: np.random.Generator) -> ImageSet:
    """A share of them, at random, as the camera sees them."""
    pixels = images.read(np.arange(len(images)))
    hit = np.sort(rng.permutation(len(images))[: round(SHIFTED * len(images))])
    pixels[hit] = apply_shift(camera, images.subset(hit), 3 * seed).read(np.arange(len(hit)))
    return ImageSet.from_arrays(pixels, images.labels, images.classes, images.ids)


def _burst(scenes: ImageSet, rng: np.random.Generator) -> ImageSet:
    """Of each scene some frames: moved by up to two pixels, a little lighter or darker, with noise."""
    pixels = scenes.read(np.arange(len(scenes))).astype(np.float32)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    height, width = scenes.size
    frames, ids = [], []
    for frame in range(FRAMES):
        for scene, (dy, dx) in enumerate(rng.integers(0, 5, (len(scenes), 2))):
            moved = padded[scene, dy : dy + height, dx : dx + width] * rng.uniform(0.93, 1.07)
            frames.append(np.clip(moved + rng.normal(0, 2, moved.shape), 0, 255).astype(np.uint8))
        ids += [f"{name.rsplit('.', 1)[0]}-{frame}.png" for name in scenes.ids]
    return ImageSet.from_arrays(np.stack(frames), np.tile(scenes.labels, FRAMES), scenes.classes, ids)
