"""Small pictures of the hardest images, inside the page."""

from __future__ import annotations

import base64
import io
from functools import cached_property
from pathlib import Path

from edge_sel.data.builtin import RELIT, load_relit
from edge_sel.data.images import UInt8Array, read_image

PIXELS = 72
MOST = 120
"""In one page: each takes about 2 kB."""


class Thumbnails:
    """Reads images where the run read them.

    Args:
        wanted: False shows none, and opens no image.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._left = MOST if wanted else 0

    def uri(self, source: str | None, path: str) -> str:
        """A ``data:`` address of the image; empty where it is gone, or cannot be read."""
        if not self._left or not source:
            return ""
        try:
            pixels = self._builtin.get(path) if source == RELIT else _read(Path(source), path)
        except Exception:  # whatever a damaged file makes of the decoder: the caption names it
            return ""
        if pixels is None:
            return ""
        self._left -= 1
        return _encode(pixels)

    @cached_property
    def _builtin(self) -> dict[str, UInt8Array]:
        images = load_relit("field")
        return dict(zip(images.ids, images.read(range(len(images))), strict=True))


def _read(folder: Path, path: str) -> UInt8Array | None:
    whole = (folder / path).resolve()
    return read_image(whole, (PIXELS, PIXELS)) if whole.is_relative_to(folder.resolve()) else None


def _encode(pixels: UInt8Array) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
