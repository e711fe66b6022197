"""Labels from elsewhere than the page: a table, or files that a person has moved into class folders.

An image's file lies where its label says. What a person has moved is taken for a label; what a label has not moved yet,
as the process was cut in between, is moved now.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_sel.data.folder import IMAGE_SUFFIXES, is_clutter
from edge_sel.data.images import UnreadableImage, read_image
from edge_sel.errors import BadInputError, UsageError
from edge_sel.files import read_regular
from edge_sel.watch.home import ASIDE, KEPT, LABELLED, Home, check_class_name
from edge_sel.watch.observer import Observer
from edge_sel.watch.records import Seen

MOST_TABLE_BYTES = 1 << 26
BY_TABLE, BY_MOVE = "table", "moved"
"""Whose labels these are."""


class Imported(NamedTuple):
    """What became of labels from elsewhere."""

    labelled: int
    unknown: int
    """Of images that are not there."""
    refused: int
    """Names that no class can have."""


def settle(home: Home, number: int, file: str) -> None:
    """Move an image's file to where its latest label says; a file that is gone, or a full disk, leaves it."""
    said = [label for label in home.records.labels() if label.image == number]
    name = said[-1].name if said else None
    wanted = home.place(Path(file).name, name, aside=bool(said) and name is None)
    if wanted == file:
        return
    source, target = home.image_file(file), home.image_file(wanted)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
    except OSError:
        return
    home.records.move(number, wanted)


def import_labels(home: Home, table: Path, clock: Callable[[], float]) -> Imported:
    """Add the labels of a CSV file with the columns ``path`` and ``class``; an empty class is none of the classes.

    A path is that of the image as it was seen, or in the home.

    Raises:
        BadInputError: it cannot be read, or lacks a column.
    """
    try:
        text = read_regular(table, MOST_TABLE_BYTES).decode("utf-8-sig")
        lines = list(csv.DictReader(text.splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError("the labels cannot be read", where=f"{table}: {error}") from error
    if lines and not {"path", "class"} <= lines[0].keys():
        raise BadInputError("the labels need the columns path and class", where=table)
    labelled, unknown, refused = 0, 0, 0
    files = {image.number: image.file for image in home.records.kept()}
    for line in lines:
        path, name = line["path"] or "", line["class"] or ""
        number = home.records.image_of(path) or home.records.image_of(path.removeprefix(f"{home.folder}/"))
        if number is None:
            unknown += 1
            continue
        try:
            home.records.add_label(number, check_class_name(name) if name.strip() else None, BY_TABLE, clock())
        except UsageError:
            refused += 1
            continue
        settle(home, number, files[number])
        labelled += 1
    return Imported(labelled, unknown, refused)


def collect_moved(home: Home, observer: Observer, clock: Callable[[], float]) -> Imported:
    """Bring records and folders into agreement: by what a person has moved, removed or added."""
    labelled, refused = 0, 0
    images = {image.number: image.file for image in home.records.kept()}
    places = {file: number for number, file in images.items()}
    names = {Path(file).name: number for file, number in places.items()}
    for file, name in _files(home):
        if file in places:
            continue
        if name is not None and name is not ASIDE:
            try:
                check_class_name(name)
            except UsageError:
                refused += 1
                continue
        label = None if name is ASIDE else name
        number = names.get(Path(file).name)
        if number is None or home.image_file(images[number]).exists():
            number = _added(home, observer, file, clock)
            if number is None:
                refused += 1
                continue
        elif name is None:  # back among those without a label: what was said of it no longer counts
            continue
        home.records.move(number, file)
        if name is not None:
            home.records.add_label(number, label, BY_MOVE, clock())
            labelled += 1
        images[number] = file
    gone = 0
    for number, file in images.items():
        if home.image_file(file).exists():
            settle(home, number, file)
        else:
            home.records.move(number, None)
            gone += 1
    return Imported(labelled, gone, refused)


def _files(home: Home) -> list[tuple[str, str | None]]:
    """Images in the home with the class of their folder: None without a label, ``ASIDE`` for none of the classes."""
    found: list[tuple[str, str | None]] = []
    folders: list[tuple[str, str | None]] = [(KEPT, None), (ASIDE, ASIDE)]
    for parent in (KEPT, LABELLED):  # class folders that a person has made among those without a label, too
        with os.scandir(home.folder / parent) as entries:
            folders += [
                (f"{parent}/{entry.name}", entry.name) for entry in sorted(entries, key=lambda each: each.name)
                if entry.is_dir(follow_symlinks=False) and not is_clutter(entry.name)
            ]  # fmt: skip
    for folder, name in folders:
        with os.scandir(home.folder / folder) as entries:
            found += [
                (f"{folder}/{entry.name}", name) for entry in sorted(entries, key=lambda each: each.name)
                if entry.is_file(follow_symlinks=False) and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
                and not is_clutter(entry.name)
            ]  # fmt: skip
    return found


def _added(home: Home, observer: Observer, file: str, clock: Callable[[], float]) -> int | None:
    """Take in an image that the watcher has not seen; None if it cannot be read, or is there already."""
    path = home.image_file(file)
    try:
        pixels = read_image(path, observer.pack.manifest.model.image_size)
        info = path.stat()
    except (UnreadableImage, OSError):
        return None
    looked = observer.look(pixels[None])
    novelty = float(observer.novelty(observer.units(looked.rows))[0])
    seen = Seen(
        str(path), info.st_mtime_ns, info.st_size, clock(), observer.classes[looked.labels[0]],
        float(looked.probabilities[0].max()), novelty, observer.number, digest_of(pixels), file,
        looked.rows[0].tobytes(), observer.computed_by,
    )  # fmt: skip
    return home.records.add([seen], {"added": 1})[0] or None


def digest_of(pixels: np.ndarray) -> int:
    """The hash of an image's pixels that its role follows from; the first of ``ImageSet.content_digests``."""
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8, salt=b"").digest(), "little")
