"""How many scans a JPEG has. Each takes a pass over the whole picture, and need not take more than a few bytes."""

from __future__ import annotations

import re
from typing import BinaryIO

MOST_SCANS = 60
"""Encoders write ten to twenty."""

_AT_FIRST, _GROWTH, _AT_ONCE = 16, 16, 1 << 20
"""Bytes: most markers are where they are looked for, and only those behind a scan are far away."""
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)  # not a byte of the picture, nor a restart
_SCAN, _END = 0xDA, 0xD9
_ALONE = {0x01, 0xD8}
"""Markers without content."""


def count_scans(file: BinaryIO, most: int = MOST_SCANS) -> int:
    """Scans of the JPEG that begins where ``file`` begins, by its markers; no more than ``most`` + 1 are counted.

    Content of other segments, such as a thumbnail, is passed over.
    """
    file.seek(0)
    scans = 0
    while scans <= most and (kind := _next_marker(file)) not in (None, _END):
        if kind in _ALONE:
            continue
        length = file.read(2)
        if len(length) < 2:
            break
        scans += kind == _SCAN
        file.seek(max(0, int.from_bytes(length, "big") - 2), 1)
    return scans


def _next_marker(file: BinaryIO) -> int | None:
    """Which marker comes next, the file then being behind it; None if there is no more."""
    at_once = _AT_FIRST
    while block := file.read(at_once):
        if found := _MARKER.search(block):
            file.seek(found.end() - len(block), 1)
            return found[0][-1]
        if block.endswith(b"\xff") and len(block) > 1:
            file.seek(-1, 1)
        at_once = min(_GROWTH * at_once, _AT_ONCE)
    return None
