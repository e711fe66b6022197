"""Find the image files in a folder of class folders, in an order independent of the file system."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeAlias

from edge_sel.data.dataset import Skipped
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
        entries = sorted(entry for entry in root.iterdir() if not _is_clutter(entry.name))
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
            if _is_clutter(entry.name):
                continue
            if not _is_folder(entry):
                yield entry
            elif entry.is_symlink():
                links.append(entry)
            else:
                folders.append(entry)


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link to itself, a folder that may not be entered
        return False


def _holds_folders(folder: Path) -> bool:
    try:
        return any(_is_folder(entry) for entry in folder.iterdir() if not _is_clutter(entry.name))
    except OSError:
        return False


def _identity(path: Path) -> _Identity:
    info = path.stat()
    return info.st_dev, info.st_ino


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _short(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
