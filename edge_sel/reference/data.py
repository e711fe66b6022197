"""Data sets for the reference systems: digits, a torchvision set by its name, or folders of images."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from edge_sel.config.schema import nearest
from edge_sel.data.builtin import load_digits
from edge_sel.data.cifar10 import load_cifar10
from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder, require_trainable
from edge_sel.data.split import stratified_split
from edge_sel.errors import DataError, SetupError, UsageError
from edge_sel.reference.systems import Scale

_CACHE_BYTES = 64 * 2**30
_TEST_SHARE = 0.2


class _Known(NamedTuple):
    """How torchvision calls it, its options for each part, and what is known without loading it."""

    torchvision: str
    parts: tuple[dict[str, Any], dict[str, Any]]
    train_images: int
    classes: int


_TRAIN = ({"train": True}, {"train": False})
_SPLIT = ({"split": "train"}, {"split": "test"})
KNOWN = {
    "cifar10": _Known("CIFAR10", _TRAIN, 50_000, 10),
    "cifar100": _Known("CIFAR100", _TRAIN, 50_000, 100),
    "svhn": _Known("SVHN", _SPLIT, 73_257, 10),
    "stl10": _Known("STL10", _SPLIT, 5_000, 10),
    "kmnist": _Known("KMNIST", _TRAIN, 60_000, 10),
    "fmnist": _Known("FashionMNIST", _TRAIN, 60_000, 10),
    "food101": _Known("Food101", _SPLIT, 75_750, 101),
    "aircraft": _Known("FGVCAircraft", ({"split": "trainval"}, {"split": "test"}), 6_667, 100),
    "cars": _Known("StanfordCars", _SPLIT, 8_144, 196),
}
DIGITS = "digits"


class Sets(NamedTuple):
    """What is trained on, what is judged by, and a word for where they are from."""

    train: ImageSet
    test: ImageSet
    source: str


def planned_size(name: str, scale: Scale) -> tuple[int, int] | None:
    """(training images, classes) of a data set that need not be loaded for it; None for a folder."""
    found = (900, 10) if name == DIGITS else KNOWN[name][2:4] if name in KNOWN else None
    if found is None or scale.train_per_class is None:
        return found
    return min(found[0], scale.train_per_class * found[1]), found[1]


def load_sets(name: str, scale: Scale, image_size: int, environ: dict[str, str] | None = None) -> Sets:
    """The training and test images of a data set.

    Args:
        name: ``digits`` (built in), a name of ``KNOWN``, or a folder: with ``train`` and ``test`` in it, or of classes,
            of which a fifth is then held out.
        scale: may take fewer images of each class, evenly spaced.
        image_size: pixels, both ways; the digits keep their 16.
        environ: ``EDGE_SEL_CIFAR10`` is where CIFAR-10 lies as folders.

    Raises:
        UsageError: neither a known name nor a folder.
        SetupError, DataError: it cannot be had or used.
    """
    environ = dict(os.environ) if environ is None else environ
    size = (image_size, image_size)
    if name == DIGITS:
        sets = Sets(load_digits("pretrain"), load_digits("test"), "built-in handwritten digits")
    elif name == "cifar10":
        root = Path(environ.get("EDGE_SEL_CIFAR10") or "cifar10")
        sets = Sets(load_cifar10(root, "train", size), load_cifar10(root, "test", size), f"CIFAR-10 in {root}")
    elif name in KNOWN:
        train, test = (_torchvision(name, part, size) for part in (0, 1))
        sets = Sets(train, test, f"{name} through torchvision")
    else:
        sets = _folder(name, size, scale)
    require_trainable(sets.train, where=name)
    return Sets(_thin(sets.train, scale.train_per_class), _thin(sets.test, scale.test_per_class), sets.source)


def _folder(name: str, size: tuple[int, int], scale: Scale) -> Sets:
    root = Path(name).expanduser()
    if not root.is_dir():
        near = nearest(name, [DIGITS, *KNOWN])
        raise UsageError(f"no data set and no folder {name!r}: did you mean {near}?")
    if (root / "train").is_dir() and (root / "test").is_dir():
        train = load_folder(root / "train", size, cache_bytes=_CACHE_BYTES, limit_per_class=scale.train_per_class)
        test = load_folder(root / "test", size, classes=train.classes, cache_bytes=_CACHE_BYTES,
                           limit_per_class=scale.test_per_class)  # fmt: skip
        return Sets(train, test, str(root))
    images = load_folder(root, size, cache_bytes=_CACHE_BYTES)
    rest, held = stratified_split(images.labels, _TEST_SHARE, np.random.default_rng(0))
    return Sets(images.subset(rest), images.subset(held), f"{root}, a fifth held out")


def _thin(images: ImageSet, per_class: int | None) -> ImageSet:
    if per_class is None:
        return images
    chosen = []
    for label in range(len(images.classes)):
        rows = np.flatnonzero(images.labels == label)
        chosen.append(rows[np.linspace(0, len(rows) - 1, min(len(rows), per_class)).astype(np.int64)])
    return images.subset(np.sort(np.concatenate(chosen)))


def _torchvision(name: str, part: int, size: tuple[int, int]) -> ImageSet:
    """Any labelled set of torchvision, downloaded if need be and resized."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, OSError) as error:  # a build for another torch raises RuntimeError
        what = f"{name} needs torchvision ({type(error).__name__}: {error})"
        raise SetupError(what, fix="pip install --upgrade torch torchvision, or give a folder of images") from error
    known = KNOWN[name]
    make: Callable[..., Any] = getattr(datasets, known.torchvision)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to --json
            source = make("data", download=True, **known.parts[part])
    except Exception as error:  # no network, a damaged archive, a source that has moved
        what = f"{name} could not be had ({type(error).__name__}: {error})"
        raise SetupError(what, fix="connect to the network, or give a folder of images") from error
    pixels = np.empty((len(source), *size, 3), dtype=np.uint8)
    labels = np.empty(len(source), dtype=np.int64)
    for number, (image, label) in enumerate(source):
        pixels[number] = np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
        labels[number] = label
    if not len(labels):
        raise DataError("the data set is empty", where=name)
    names = getattr(source, "classes", None) or [str(n) for n in range(int(labels.max()) + 1)]
    return ImageSet.from_arrays(pixels, labels, [str(n) for n in names])
