"""CIFAR-10, from a tree of image folders or through torchvision."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.images import UInt8Array
from edge_sel.errors import DataError, SetupError

_TREE = "or put the images in ROOT/train/<class> and ROOT/test/<class>"


def load_cifar10(
    root: str | os.PathLike[str], split: Literal["train", "test"], size: tuple[int, int] = (32, 32)
) -> ImageSet:
    """The 50 000 training or 10 000 test images of CIFAR-10.

    Args:
        root: a folder with ``train/<class>/<image>`` and ``test/<class>/<image>``; otherwise the place of
            torchvision's own download, which is made if it is missing.
        split: which part.
        size: (height, width) in pixels; the originals have 32 x 32.

    Raises:
        SetupError: torchvision is needed and missing, or the download failed.
        DataError: the images or the downloaded archive cannot be used.
    """
    root = Path(root)
    if (root / "train").is_dir() or (root / "test").is_dir():
        return load_folder(root / split, size)
    source = _torchvision_set(root, split)
    images: UInt8Array = np.asarray(source.data, dtype=np.uint8)
    ids = [f"{split}/{number:05d}" for number in range(len(images))]
    return ImageSet.from_arrays(_resized(images, size), source.targets, source.classes, ids)


def _torchvision_set(root: Path, split: str) -> Any:
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError, OSError) as error:  # a build for another torch raises RuntimeError
        what = f"CIFAR-10 needs torchvision ({type(error).__name__}: {error})"
        fix = f"pip install --upgrade torch torchvision, {_TREE}"
        raise SetupError(what, where=root, fix=fix) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to --json
            return CIFAR10(os.fspath(root), train=split == "train", download=True)
    except OSError as error:
        what = f"CIFAR-10 could not be downloaded ({error})"
        raise SetupError(what, where=root, fix=f"connect to the network, {_TREE}") from error
    except Exception as error:  # whatever a damaged archive makes tarfile, pickle or torchvision raise
        what = f"the CIFAR-10 download is damaged ({type(error).__name__}: {error})"
        raise DataError(what, where=root, fix="delete it there and try again") from error


def _resized(images: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    from PIL import Image

    if images.shape[1:3] == size:
        return images
    result = np.empty((len(images), *size, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        result[number] = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    return result
