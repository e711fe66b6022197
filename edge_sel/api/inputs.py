"""What a run is given: a profile, keys, a pack, images, a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from edge_sel.config.profiles import Profile, detect_profile, load_profile
from edge_sel.config.settings import Settings
from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.errors import DataError
from edge_sel.pack.reader import Pack
from edge_sel.pack.signatures import TrustedKeys

GivenImages: TypeAlias = ImageSet | Path | None
"""Images in memory, or a folder of class folders."""


class RunImages(NamedTuple):
    """What a run looks at."""

    images: ImageSet
    """To train on; a part is held out for validation."""
    test: ImageSet | None
    """For the figures before and after only."""
    source: str
    """Where ``images`` are from, for the report."""


def open_profile(asked: str | None) -> Profile:
    """The device profile that was asked for, or the one that fits this machine."""
    return load_profile(detect_profile() if asked is None else asked)


def trusted_keys(files: Sequence[str] | None) -> TrustedKeys | None:
    """The public keys of which one must have signed what is opened; None where none is required."""
    from edge_sel.pack.signatures import read_trusted_keys

    return None if files is None else read_trusted_keys(files)


def open_pack_or_builtin(path: Path | None, trusted: TrustedKeys | None = None) -> Pack:
    """The pack, or the built-in one on handwritten digits."""
    from edge_sel.pack.reader import builtin_pack, open_pack

    return builtin_pack(trusted) if path is None else open_pack(path, trusted)


def load_images(pack: Pack, data: GivenImages, test: GivenImages, settings: Settings) -> RunImages:
    """The device's images and the test images, if there are any; without ``data`` the built-in digits.

    Raises:
        DataError: they are not of the model's classes or size, or cannot be read.
    """
    from edge_sel.data.builtin import RELIT, load_relit

    model = pack.manifest.model
    tested = None
    if data is None:
        images = load_relit("field")
        if test is None:
            tested = load_relit("test")
    else:
        images = _read(
            data, model.image_size, classes=model.classes, new_classes=settings.new_classes,
            max_pixels=settings.max_pixels,
        )  # fmt: skip
    if test is not None:
        tested = _read(
            test, model.image_size, classes=images.classes, new_classes="strict", max_pixels=settings.max_pixels
        )
    source = RELIT if data is None else _name(data)
    return RunImages(images, tested, source)


def _read(given: ImageSet | Path, size: tuple[int, int], **how: Any) -> ImageSet:
    if isinstance(given, ImageSet):
        return aligned(given, size, how["classes"], how["new_classes"])
    return load_folder(given, size, **how)


def aligned(images: ImageSet, size: tuple[int, int], classes: Sequence[str], new_classes: str) -> ImageSet:
    """Images in memory with their labels in the order of the model's classes; new classes come after these, sorted.

    Raises:
        DataError: the images are of another size, or of a class that the model lacks.
    """
    if images.size != tuple(size):
        what, takes = (f"{height} x {width} pixels" for height, width in (images.size, size))
        raise DataError(f"images of {what}", where=f"the model takes {takes}", fix="resize them, or name a folder")
    present = {images.classes[label] for label in np.unique(images.labels)}
    fresh = sorted(present - set(classes))
    if fresh and new_classes == "strict":
        fix = "rename them, or set new_classes to extend"
        raise DataError("classes that the model lacks", where=", ".join(fresh), fix=fix)
    names = (*classes, *fresh)
    number = np.array([names.index(name) if name in names else -1 for name in images.classes])
    return images.relabelled(number[images.labels], names)


def _name(given: ImageSet | Path) -> str:
    return f"{len(given)} images in memory" if isinstance(given, ImageSet) else str(given)


def check_images(pack: Pack, data: GivenImages, test: GivenImages) -> None:
    """Look whether the folders of images can be used at all, before anything is made or measured.

    Raises:
        DataError: one of them is not a folder of class folders.
    """
    from edge_sel.data.folder import list_images

    for root in (data, test):
        if isinstance(root, Path):
            list_images(root, pack.manifest.model.classes)
