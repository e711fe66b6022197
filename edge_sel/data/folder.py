"""Images that are sorted into one folder per class, ``root/<class>/…/<image>``: find them, and load them.

Their order does not depend on the file system.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from edge_sel.data.dataset import DEFAULT_CACHE_BYTES, ImageSet, ImageStore, Skipped
from edge_sel.data.images import MAX_PIXELS, UnreadableImage, read_image
from edge_sel.errors import DataError, escaped

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
LAYOUT = "expected one folder per class: ROOT/<class>/<image>"

# What desktops, archives and memory cards leave behind, besides names that start with a dot.
_CLUTTER = frozenset(
    {
        "thumbs.db",
        "desktop.ini",
        "__macosx",
        "@eadir",
        "$recycle.bin",
        "lost+found",
        "system volume information",
    }
)
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
_LEADS_BACK = "a link that leads back"

_Identity: TypeAlias = tuple[int, int]  # device and inode: the same for every path to one folder


def load_folder(
    root: str | os.PathLike[str],
    size: tuple[int, int],
    *,
    classes: Sequence[str] | None = None,
    new_classes: Literal["strict", "extend"] = "strict",
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    limit_per_class: int | None = None,
    only: Collection[str] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageSet:
    """Load ``root/<class>/**/<image>``; the result does not depend on the order of the file system.

    Every image is decoded once, so that unreadable ones are known now: they are left out and listed in
    ``skipped``, as are files that are not images. Hidden files, the clutter that desktops leave behind and
    folders without images are ignored.

    Args:
        root: the folder of class folders.
        size: (height, width) of the images in pixels.
        classes: the class names that a model has, in the order of its labels; None takes the folders, sorted.
        new_classes: refuse folders that are not in ``classes``, or append them to the classes, sorted.
        cache_bytes: memory for decoded images; those beyond it are decoded again at every read.
        limit_per_class: use at most this many files of a class, evenly spaced over its sorted list.
        only: ids of the images to use; None for all.
        max_pixels: larger images are skipped, see ``read_image``.

    Raises:
        DataError: not a folder of class folders, unknown classes, or not one readable image.
    """
    if limit_per_class is not None and limit_per_class < 1:
        raise ValueError(f"limit_per_class must be at least 1, not {limit_per_class}")
    root = Path(root)
    known = list(classes or ())
    listing, skipped = list_images(root, known)
    known_by_folder = {printable(name): name for name in known}
    if len(known_by_folder) < len(known):
        raise DataError("classes of the model differ only in how their names are encoded", where=root)
    fresh = sorted(set(listing) - set(known_by_folder))
    if fresh and classes is not None and new_classes == "strict":
        raise _unknown_classes(root, fresh, known)
    if only is not None:
        listing = {name: [file for file in files if file[0] in only] for name, files in listing.items()}
    files = [
        (known_by_folder.get(folder, folder), image_id, path)
        for folder in [*known_by_folder, *fresh]
        for image_id, path in _thin_out(listing.get(folder, []), limit_per_class)
    ]
    store, kept, unreadable = _decode_all(files, size, cache_bytes, max_pixels)
    skipped = sorted([*skipped, *unreadable], key=lambda item: item.path)
    if not kept:
        raise _nothing_readable(root, unreadable or skipped)
    present = {name for name, _ in kept}
    names = known + [name for name in fresh if name in present]
    number = {name: label for label, name in enumerate(names)}
    labels = [number[name] for name, _ in kept]
    return ImageSet(store, labels, names, [image_id for _, image_id in kept], size, skipped=skipped)


def require_trainable(image_set: ImageSet, minimum_per_class: int = 2, *, where: object = None) -> None:
    """Check that there is something to tell apart: two classes, and enough images of each that occurs.

    Args:
        image_set: what is to be trained on.
        minimum_per_class: a class that occurs needs this many images: one to train on, one to check with.
        where: the source, named in the error.

    Raises:
        DataError: fewer than two classes, or too few images of one.
    """
    counts = zip(image_set.classes, image_set.class_counts().tolist(), strict=True)
    present = [(name, count) for name, count in counts if count]
    if len(present) < 2:
        what = f"one class only ({present[0][0]})" if present else "no images"
        raise DataError(f"{what}; training needs two", where=where, fix="add a folder of another class")
    scarce = [f"{name}: {count}" for name, count in present if count < minimum_per_class]
    if scarce:
        fix = f"at least {minimum_per_class} readable images per class; add some, or remove the class"
        raise DataError(f"too few images, {_shorten(scarce)}", where=where, fix=fix)


def _decode_all(
    files: Sequence[tuple[str, str, Path]], size: tuple[int, int], cache_bytes: int, max_pixels: int
) -> tuple[ImageStore, list[tuple[str, str]], list[Skipped]]:
    """Decode every (class, id, path) once: pixels, (class, id) of the readable ones, and the others."""
    room = min(len(files), max(0, cache_bytes // (3 * size[0] * size[1])))
    cached = np.empty((room, *size, 3), dtype=np.uint8)
    kept: list[tuple[str, str]] = []
    paths: list[Path] = []
    unreadable: list[Skipped] = []
    for name, image_id, path in files:
        try:
            image = read_image(path, size, max_pixels=max_pixels)
        except UnreadableImage as error:
            unreadable.append(Skipped(image_id, error.reason))
            continue
        if len(kept) < room:
            cached[len(kept)] = image
        kept.append((name, image_id))
        paths.append(path.absolute())
    store = ImageStore(cached[: len(kept)], paths if len(kept) > room else (), max_pixels)
    return store, kept, unreadable


def _thin_out(files: list[tuple[str, Path]], limit: int | None) -> list[tuple[str, Path]]:
    if limit is None or len(files) <= limit:
        return files
    return [files[place * len(files) // limit] for place in range(limit)]


def _unknown_classes(root: Path, unknown: Sequence[str], known: Sequence[str]) -> DataError:
    by_lower = {name.lower(): name for name in known}
    described = []
    for name in unknown:
        near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)
        described.append(f"{name} (nearest: {by_lower[near[0]]})" if near else name)
    what = f"folders that are not classes of the model, {_shorten(described)}"
    return DataError(what, where=root, fix="rename them, or add them as classes with --new-classes extend")


def _nothing_readable(root: Path, skipped: Sequence[Skipped]) -> DataError:
    if not skipped:
        return DataError("no images in the class folders", where=root, fix=LAYOUT)
    first = f"the first is {skipped[0].path}, {skipped[0].reason}"
    return DataError(f"no readable images, {len(skipped)} skipped, {first}", where=root, fix=LAYOUT)


def _shorten(items: Sequence[str], most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def list_images(root: Path, known: Collection[str] = ()) -> tuple[dict[str, list[tuple[str, Path]]], list[Skipped]]:
    """The image files of each class folder.

    Args:
        root: the folder of class folders.
        known: class names that a model has already (a class may well be called "train").

    Returns:
        class name -> (sample id, file) sorted by id, for every folder that holds a file with an image suffix;
        and what was passed over. Class names and ids are printable, composed Unicode.

    Raises:
        DataError: ``root`` is not a folder of class folders.
    """
    folders, loose = _class_folders(root, known)
    skipped = [Skipped(printable(path.name), "not in a class folder") for path in loose]
    listing: dict[str, dict[str, Path]] = {}
    above = {_identity(path) for path in (root.resolve(), *root.resolve().parents)}
    barred = above | {_identity(folder) for _, folder in folders}
    for name, folder in folders:
        if _identity(folder) in above:
            skipped.append(Skipped(_relative(folder, root), _LEADS_BACK))
            continue
        for path in _walk(folder, root, set(barred), skipped):
            image_id, images = _relative(path, root), listing.setdefault(name, {})
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                skipped.append(Skipped(image_id, "not an image suffix"))
            elif image_id in images:
                skipped.append(Skipped(image_id, "another file has this name in another Unicode form: rename one"))
            else:
                images[image_id] = path
    listing = {name: images for name, images in listing.items() if images}
    return {name: sorted(files.items()) for name, files in listing.items()}, skipped


def list_loose_images(root: Path) -> tuple[list[tuple[str, Path]], list[Skipped]]:
    """Every image file below a folder, whatever its layout, as (id, file) sorted by id; and what was passed over.

    Raises:
        DataError: the folder cannot be listed.
    """
    skipped: list[Skipped] = []
    files = {_relative(path, root): path for path in _walk(root, root, set(), skipped)}
    if not files and skipped and skipped[0].path == ".":
        raise DataError(f"cannot list the folder, {skipped[0].reason}", where=root)
    other = [name for name, path in files.items() if path.suffix.lower() not in IMAGE_SUFFIXES]
    skipped += [Skipped(name, "not an image suffix") for name in other]
    return sorted((name, path) for name, path in files.items() if name not in set(other)), skipped


def printable(name: str) -> str:
    """Composed Unicode (macOS decomposes), with escapes for control characters and bytes that are not UTF-8."""
    return escaped(unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace")))


def _class_folders(root: Path, known: Collection[str]) -> tuple[list[tuple[str, Path]], list[Path]]:
    """(class name, folder) for every folder in ``root``, and the images beside them."""
    try:
        entries = sorted(entry for entry in root.iterdir() if not is_clutter(entry.name))
    except FileNotFoundError:
        raise DataError("no such folder", where=root, fix=LAYOUT) from None
    except NotADirectoryError:
        fix = f"if it is an archive, unpack it; {LAYOUT}"
        raise DataError("a file, not a folder of images", where=root, fix=fix) from None
    except OSError as error:
        what = f"cannot list the folder, {_short(error)}"
        raise DataError(what, where=root, fix="give a folder that this user may read") from error
    folders = [(printable(entry.name), entry) for entry in entries if _is_folder(entry)]
    loose = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and not _is_folder(entry)]
    if not folders:
        what = f"{len(loose)} images but no class folders" if loose else "no class folders"
        raise DataError(what, where=root, fix=LAYOUT)
    names = {name.lower() for name, _ in folders}
    if names <= _SPLITS - set(known) and any(_holds_folders(folder) for _, folder in folders):
        fix = f"give one of them, for example {folders[0][1]}"
        raise DataError("the folders in it are splits, not classes", where=root, fix=fix)
    return folders, loose


def _walk(folder: Path, root: Path, seen: set[_Identity], skipped: list[Skipped]) -> Iterator[Path]:
    """Every visible file below ``folder``: each folder once, links to folders after real folders."""
    folders, links = [folder], list[Path]()
    while folders or links:
        current = folders.pop() if folders else links.pop()
        try:
            identity = _identity(current)
            if identity in seen and current != folder:
                skipped.append(Skipped(_relative(current, root), _LEADS_BACK))
                continue
            entries = sorted(current.iterdir(), reverse=True)
        except OSError as error:
            skipped.append(Skipped(_relative(current, root), _short(error)))
            continue
        seen.add(identity)
        for entry in entries:
            if is_clutter(entry.name):
                continue
            if not _is_folder(entry):
                yield entry
            elif entry.is_symlink():
                links.append(entry)
            else:
                folders.append(entry)


def is_clutter(name: str) -> bool:
    """Whether a name is what desktops, archives and memory cards leave behind, or hidden."""
    return name.startswith(".") or name.lower() in _CLUTTER


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link to itself, a folder that may not be entered
        return False


def _holds_folders(folder: Path) -> bool:
    try:
        return any(_is_folder(entry) for entry in folder.iterdir() if not is_clutter(entry.name))
    except OSError:
        return False


def _identity(path: Path) -> _Identity:
    info = path.stat()
    return info.st_dev, info.st_ino


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _short(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
