"""Field shifts by name: what changes between the images a model was trained on and those of the device's own camera."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.images import UInt8Array
from edge_sel.data.shift_kinds import background, blur_noise, colour_cast, field_camera, fog, jpeg, low_light
from edge_sel.errors import SetupError, UsageError

Shift: TypeAlias = Callable[[UInt8Array, np.random.Generator], UInt8Array]

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
