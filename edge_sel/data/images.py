"""Decode one image file into RGB pixels, or say in a few words why that cannot be done.

Whatever a camera, a phone or a scanner wrote becomes upright 8-bit RGB: EXIF orientation is applied; CMYK,
grey, palette and 1-bit images are converted; 16-bit greys are scaled, not clipped; transparency is laid on
white, as on paper; and of an animation the first frame is taken.

What a file takes is bounded before its pixels are decoded: their number, and a JPEG's scans.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from edge_sel.config.settings import Settings
from edge_sel.files import stderr_silenced

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Int64Array: TypeAlias = npt.NDArray[np.int64]
Float32Array: TypeAlias = npt.NDArray[np.float32]

MAX_PIXELS = Settings.max_pixels
_REDUCED = 4
"""A JPEG that is decoded smaller may declare so many times more pixels: reading it takes time, but no memory."""

# Only these decoders are tried: Pillow has others that start programs (EPS).
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_PIXELS_AT_ONCE = 1 << 20
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

MOST_SCANS = 60
"""Of a JPEG: each takes a pass over the whole picture, from a few bytes. Encoders write ten to twenty."""

_AT_FIRST, _GROWTH, _MOST_AT_ONCE = 16, 16, 1 << 20
"""Bytes: most markers are where they are looked for, and only those behind a scan are far away."""
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)  # not a byte of the picture, nor a restart
_SCAN, _END = 0xDA, 0xD9
_ALONE = {0x01, 0xD8}
"""Markers without content."""

# Pillow reports doubts about a file as warnings. Silencing those is process-wide, so one thread at a time.
_silence = threading.Lock()


class UnreadableImage(Exception):  # noqa: N818 - a finding to count and list, not always an error
    """This file cannot be used as an image; ``reason`` says why in a few words."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def read_image(path: str | os.PathLike[str], size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Decode ``path`` into upright RGB, scaled to cover ``size`` and cut to its centre.

    Args:
        path: a JPEG, PNG, BMP, WebP, GIF, TIFF, PPM or PGM file, recognised by its content.
        size: (height, width) of the result in pixels. An image that has this size is returned unchanged.
        max_pixels: an image of more is refused before its pixels are decoded. Of a JPEG those count that are decoded,
            which are fewer where it is reduced while it is read.

    Returns:
        uint8 [height, width, 3], C-contiguous and writable.

    Raises:
        UnreadableImage: missing, empty, truncated, too large, not an image: see its ``reason``.
    """
    return _read(lambda: _open_regular(Path(path)), size, max_pixels)


def decode_image(content: bytes, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """``read_image`` of a file's content, such as a frame that a camera's program pipes."""
    if not content:
        raise UnreadableImage("empty")
    return _read(lambda: BytesIO(content), size, max_pixels)


def _read(opened: Callable[[], BinaryIO], size: tuple[int, int], max_pixels: int) -> UInt8Array:
    if min(size) < 1:
        raise ValueError(f"size must be at least 1 x 1 pixel, not {size}")
    try:
        with _silence, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with opened() as file:
                return _decode(file, size, max_pixels)
    except UnreadableImage:
        raise
    except MemoryError:
        raise UnreadableImage("does not fit into memory") from None
    except Exception as error:  # on damaged bytes decoders raise nearly every type
        raise UnreadableImage(_describe(error, max_pixels)) from error


def _open_regular(path: Path) -> BinaryIO:
    info = path.stat()
    if stat.S_ISDIR(info.st_mode):
        raise UnreadableImage("a folder, not a file")
    if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
        raise UnreadableImage("not a regular file")
    if info.st_size == 0:
        raise UnreadableImage("empty file")
    return path.open("rb")


def _decode(file: BinaryIO, size: tuple[int, int], max_pixels: int) -> UInt8Array:
    from PIL import Image, UnidentifiedImageError

    try:
        image: PilImage = Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:
        raise UnreadableImage(_why_unidentified(file)) from None
    _reduce_or_refuse(image, file, size, max_pixels)
    with stderr_silenced() if image.format == "TIFF" else nullcontext():
        image.load()
    orientation = _orientation(image)  # only now: Pillow turns a TIFF itself while loading it
    height, width = size if orientation < 5 else size[::-1]  # of the result, before it is turned upright
    image = _eight_bit(image)
    if image.size != (width, height):
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        box = (
            max(0, left),
            max(0, top),
            min(image.width, left + width * scale),
            min(image.height, top + height * scale),
        )
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    image = _on_white(image)
    if orientation in _TURNS:
        image = image.transpose(Image.Transpose[_TURNS[orientation]])
    return np.array(image, dtype=np.uint8)


def _reduce_or_refuse(image: PilImage, file: BinaryIO, size: tuple[int, int], max_pixels: int) -> None:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8, which is cheap; refuse what would still be too much.

    Twice the wanted size is left for the real filter.
    """
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        place = file.tell()
        if count_scans(file) > MOST_SCANS:
            raise UnreadableImage(f"a JPEG of more than {MOST_SCANS} scans")
        file.seek(place)
        image.draft(None, (2 * max(size), 2 * max(size)))
    # A progressive one is held in memory whole, whatever comes of it.
    decoded = width * height if image.info.get("progressive") else image.width * image.height
    if decoded > max_pixels or width * height > _REDUCED * max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels: {_too_large(max_pixels)}")


def _orientation(image: PilImage) -> int:
    """EXIF orientation, 1..8; 1 (upright) where the metadata is absent or damaged."""
    try:
        value = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata does not spoil the pixels
        return 1
    return value if value in _TURNS else 1


def _eight_bit(image: PilImage) -> PilImage:
    """The same picture as L, RGB or RGBA, the modes that can be resized without loss."""

    if image.mode == "I" or image.mode.startswith("I;16"):
        return _eight_bit_grey(image)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels: save it with 8 or 16 bits")
    mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert() copies even then


def _eight_bit_grey(image: PilImage) -> PilImage:
    """16-bit greys scaled to 8 bits, some rows at a time: the whole would be there four times over."""
    from PIL import Image

    scaled = np.empty((image.height, image.width), np.uint8)
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(image.height, top + rows)))
        grey = np.asarray(part).astype(np.uint32)  # a negative number becomes a very large one
        if grey.max() > 65535:
            raise UnreadableImage("32-bit pixels: save it with 8 or 16 bits")
        scaled[top : top + rows] = (grey * 255 + 32767) // 65535
    return Image.fromarray(scaled)


def _on_white(image: PilImage) -> PilImage:
    from PIL import Image

    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _why_unidentified(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(12)
    if head[4:8] == b"ftyp":
        return "HEIC, AVIF or video: convert it to JPEG"
    return "truncated or damaged" if head.startswith(_SIGNATURES) else "not an image"


def _describe(error: Exception, max_pixels: int) -> str:
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\d+ pixels", str(error))
        return f"{pixels[0] if pixels else 'its size'}: {_too_large(max_pixels)}"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "truncated" if "truncated" in str(error).lower() else f"damaged ({type(error).__name__})"


def _too_large(max_pixels: int) -> str:
    return f"larger than {max_pixels / 1e6:g} megapixels"


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
        at_once = min(_GROWTH * at_once, _MOST_AT_ONCE)
    return None
