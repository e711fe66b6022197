"""What the benchmark fine-tunes on and is judged by: one *cell* of images for each field shift and seed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cifar10_field import make_pack, unused_images

from edge_sel.data.builtin import load_digits
from edge_sel.data.cifar10 import load_cifar10
from edge_sel.data.dataset import ImageSet
from edge_sel.data.shifts import apply_shift, write_folder
from edge_sel.errors import UsageError
from edge_sel.pack import reader
from field import streams
from field.streams import FAMILIAR, STREAMS

CAMERA: dict[str, str | None] = {
    "low_light": "low_light",
    "fog": "fog",
    "colour_cast": "colour_cast",
    "blur_noise": "blur_noise",
    "label_shift": None,
    "unseen_class": "field_camera",
    "jpeg": "jpeg",
    "background": "background",
}
"""Family -> what happens to each image. In ``label_shift`` only the shares of the classes change."""

HELD_OUT = ("jpeg", "background")
"""Not looked at before the final figures."""
TUNING = tuple(name for name in CAMERA if name not in HELD_OUT)

UNSEEN = "truck"
RAREST = 1 / 20  # of the commonest class, in label_shift
PLAIN_EPOCHS, ROBUST_EPOCHS = 16, 24
"""Of pretraining: a model that learns to stand cameras too needs longer for the same accuracy on clean images."""


class Sizes(NamedTuple):
    """Images per class, where the classes are equally common."""

    field: int = 200
    val: int = 200
    test: int = 500


class Pools(NamedTuple):
    """Where the images come from: what pretraining did not use, and the test images. Read when first needed."""

    unused: Callable[[], ImageSet]
    test: Callable[[], ImageSet]


def cifar_pools(cifar: Path) -> Pools:
    """CIFAR-10 in folders."""
    return Pools(cache(partial(unused_images, cifar)), cache(partial(load_cifar10, cifar, "test")))


def digits_pools() -> Pools:
    """The built-in digits."""
    return Pools(partial(load_digits, "field"), partial(load_digits, "test"))


class Cell(NamedTuple):
    """The images of one family and seed: a folder to fine-tune on, and arrays that only the evaluator sees."""

    shift: str
    seed: int
    folder: Path

    @property
    def field(self) -> Path:
        """``<class>/<image>.png``: what the systems are given."""
        return self.folder / "field"

    def images(self, part: str) -> ImageSet:
        """``val`` or ``test``."""
        with np.load(self.folder / f"{part}.npz", allow_pickle=False) as arrays:
            return ImageSet.from_arrays(arrays["images"], arrays["labels"], arrays["classes"].tolist())

    def familiar(self, part: str) -> ImageSet | None:
        """The same images as the server knows them, for a set that has some of these."""
        return self.images(part + FAMILIAR) if (self.folder / f"{part}{FAMILIAR}.npz").exists() else None


def prepare(shift: str, seed: int, pools: Pools, sizes: Sizes, work: Path) -> Cell:
    """Draw, shift and write the images of a cell, once.

    The test images are the same for every seed, their circumstances are not; field and validation images are drawn
    anew from those that pretraining did not use.
    """
    cell = Cell(shift, seed, work / "cells" / f"{shift}-{seed}-{sizes.field}-{sizes.val}-{sizes.test}")
    if cell.folder.is_dir():
        return cell
    if shift in STREAMS:
        streams.prepare(shift, seed, pools.unused(), pools.test(), sizes.test, cell.folder)
        return cell
    half = cell.folder.with_suffix(".part")
    shutil.rmtree(half, ignore_errors=True)
    rng = np.random.default_rng(seed)
    unused, test = pools.unused(), pools.test()
    shares = _shares(shift, len(test.classes), rng)
    field, rest = _draw(unused, shares, sizes.field, rng)
    val, _ = _draw(rest, shares, sizes.val, rng)
    test, _ = _draw(test, np.ones_like(shares), sizes.test, np.random.default_rng(0))
    test, _ = _draw(test, shares, sizes.test, rng)
    write_folder(_seen_by(shift, field, 3 * seed), half / "field")
    for number, (part, images) in enumerate((("val", val), ("test", test)), start=1):
        images = _seen_by(shift, images, 3 * seed + number)
        pixels = images.read(np.arange(len(images)))
        np.savez(half / f"{part}.npz", images=pixels, labels=images.labels, classes=np.array(images.classes))
    half.rename(cell.folder)
    return cell


def _shares(shift: str, classes: int, rng: np.random.Generator) -> np.ndarray:
    """How common each class is; in ``label_shift`` geometric from 1 to 1/20 in random order, else 1."""
    if shift != "label_shift":
        return np.ones(classes)
    return rng.permutation(RAREST ** np.linspace(0, 1, classes))


def _draw(images: ImageSet, shares: np.ndarray, per_class: int, rng: np.random.Generator) -> tuple[ImageSet, ImageSet]:
    """Random images in these shares, ``per_class`` on average or as many as there are, and the others."""
    scale = min(per_class * len(shares) / shares.sum(), (images.class_counts() / shares).min())
    counts = np.maximum(2, np.floor(scale * shares + 1e-9)).astype(int)
    chosen = [rng.permutation(np.flatnonzero(images.labels == c))[:count] for c, count in enumerate(counts)]
    drawn = np.sort(np.concatenate(chosen))
    return images.subset(drawn), images.subset(np.setdiff1d(np.arange(len(images)), drawn))


def _seen_by(shift: str, images: ImageSet, seed: int) -> ImageSet:
    camera = CAMERA[shift]
    return images if camera is None else apply_shift(camera, images, seed)


class Start(NamedTuple):
    """What the systems start from: the same weights, for torch and for us."""

    checkpoint: Path
    pack: Path
    server: Path | None = None
    """The images that they were made from; None where these lie in no folder."""


def cifar_start(shift: str, *, robust: bool, cifar: Path, work: Path) -> Start:
    """The checkpoint and its pack, made if need be; for ``unseen_class`` those of a server without that class."""
    epochs = ROBUST_EPOCHS if robust else PLAIN_EPOCHS
    if shift != "unseen_class":
        return Start(*make_pack(cifar / "train", work, epochs, robust=robust), cifar / "train")
    epochs = 3 * epochs // 4
    known = work / "unseen" / "train"
    known.mkdir(parents=True, exist_ok=True)
    for folder in sorted((cifar / "train").iterdir()):
        if folder.is_dir() and folder.name != UNSEEN and not (known / folder.name).exists():
            (known / folder.name).symlink_to(folder.resolve())
    return Start(*make_pack(known, work / "unseen", epochs, robust=robust), known)


def digits_start(shift: str, *, robust: bool, work: Path) -> Start:
    """The built-in pack, and a checkpoint with its weights.

    Raises:
        UsageError: the shift needs a pack that lacks a class, or a robust one.
    """
    if robust:
        raise UsageError("the built-in pack is plain", fix="leave out --short")
    from edge_sel.engines.torch import TorchEngine
    from edge_sel.server.source.base import WarmupInfo
    from edge_sel.server.warmup import save

    if shift == "unseen_class":
        raise UsageError("the built-in pack knows all of its classes", where=shift, fix="leave out --short")
    checkpoint = work / "warmup.safetensors"
    if not checkpoint.exists():
        pack = reader.builtin_pack()
        info = pack.manifest.model
        model = TorchEngine(device="cpu").model(pack, pack.weights())
        save(
            checkpoint,
            model,
            WarmupInfo(info.name, info.classes, info.image_size, info.mean, info.std, {"flip": info.flip}),
        )
    return Start(checkpoint, Path(reader.__file__).parent / "assets" / "digits.edgepack")
