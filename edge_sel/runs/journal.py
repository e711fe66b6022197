"""An append-only file of JSON lines of which the last whole one counts: it survives kills, and power cuts if synced.

Each line carries its own checksum. A last line that was not written whole is normal after a cut; other damage is told.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sel.files import UnfitFileError, open_no_link, open_regular, refuse_link, regular_size, write_durably
from edge_sel.schema import parse_json

TAIL = 1 << 16
"""Bytes at the end that are looked at."""
LARGEST = 1 << 20
"""A larger file begins anew with its latest line."""


def read_journal(path: Path) -> tuple[dict[str, Any] | None, bool]:
    """The last whole line, and whether anything but the end of the file is damaged."""
    try:
        with open_regular(path, follow=False) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL))
            content = file.read(TAIL)
    except FileNotFoundError:
        return None, False
    except OSError:
        return None, True
    lines = content.split(b"\n")[:-1]
    if size > TAIL:
        lines = lines[1:]
    found = [_checked(line) for line in lines]
    whole = [entry for entry in found if entry is not None]
    return whole[-1] if whole else None, len(whole) < len(found) or (size > TAIL and not whole)


class Journal:
    """Appends lines to the file at ``path``, after what is whole of it.

    Raises:
        OSError: the file cannot be written, as a folder cannot.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        refuse_link(path)
        try:
            self._size = self._before = _cut_half_line(path)
        except FileNotFoundError:
            self._size = self._before = 0
        except UnfitFileError:
            path.unlink()  # a pipe, or whatever it is
            self._size = self._before = 0

    def append(self, entry: Mapping[str, Any], *, sync: bool) -> None:
        """Write one line; with ``sync`` it is on the disk afterwards.

        Raises:
            OSError: the disk is full or fails.
            SetupError: likewise.
        """
        text = json.dumps(entry)
        line = f'{text[:-1]}, "crc": "{_crc(text)}"}}\n'.encode()
        if self._size > LARGEST:
            write_durably(self._path, line)
            self._size = len(line)
            return
        with open_no_link(self._path, "ab", buffering=0) as file:
            self._size += file.write(line)
            if sync:
                os.fsync(file.fileno())

    def withdraw(self) -> None:
        """Leave the file as it was found."""
        if self._before:
            with open_no_link(self._path, "r+b") as file:
                file.truncate(min(self._before, self._size))
        else:
            self._path.unlink(missing_ok=True)


def _cut_half_line(path: Path) -> int:
    """The size without it."""
    size = regular_size(path)
    with open_no_link(path, "r+b") as file:
        start = file.seek(max(0, size - TAIL))
        tail = file.read(TAIL)
        if not tail.endswith(b"\n"):
            size = file.truncate(start + tail.rfind(b"\n") + 1)
    return size


def _checked(line: bytes) -> dict[str, Any] | None:
    try:
        entry = dict(parse_json(line))
        crc = entry.pop("crc")
    except (ValueError, TypeError, KeyError):
        return None
    return entry if crc == _crc(json.dumps(entry)) else None


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
