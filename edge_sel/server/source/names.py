"""Class names, of a file or of a folder of images."""

from __future__ import annotations

from pathlib import Path

from edge_sel.data.listing import list_images
from edge_sel.errors import BadInputError


def read_classes(path: Path) -> tuple[str, ...]:
    """One class name a line, in the order of the logits; an empty last line does not count.

    Raises:
        BadInputError: no such file, not text, an empty line, or a name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BadInputError(f"the class names cannot be read ({told})", where=path) from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    empty = next((number for number, name in enumerate(names, 1) if not name or not name.isprintable()), None)
    if not names or empty is not None:
        raise BadInputError("a line has no class name", where=f"{path}, line {empty or 1}", fix="one name per line")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInputError(f"class {twice} occurs twice", where=path)
    return tuple(names)


def folder_classes(root: Path) -> tuple[str, ...]:
    """The class folders that hold images, sorted.

    Raises:
        DataError: not a folder of class folders.
    """
    return tuple(sorted(list_images(root)[0]))
