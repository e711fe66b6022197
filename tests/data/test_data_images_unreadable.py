"""What cannot be read as an image is told in a few words, and nothing worse happens."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from picture_files import SIZE, encoded, save
from PIL import Image

from edge_sel.data.images import UnreadableImage, read_image


def reason(path, size=SIZE, **options):
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, size, **options)
    assert caught.value.reason == str(caught.value)
    assert "\n" not in caught.value.reason
    return caught.value.reason


def png_header(width, height):
    """A PNG of a few dozen bytes that claims to be this large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_what_is_no_image_is_told_by_kind(tmp_path):
    assert reason(tmp_path / "none.jpg") == "missing"
    (tmp_path / "empty.jpg").touch()
    assert reason(tmp_path / "empty.jpg") == "empty file"
    assert reason(tmp_path) == "a folder, not a file"
    (tmp_path / "text.jpg").write_text("these are not pixels\n" * 10)
    assert reason(tmp_path / "text.jpg") == "not an image"
    (tmp_path / "zeros.png").write_bytes(bytes(4096))
    assert reason(tmp_path / "zeros.png") == "not an image"
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    assert "HEIC" in reason(tmp_path / "phone.jpg")


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert reason(tmp_path / "a.jpg") == "not an image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_truncated_image_is_told(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    data = encoded(noise, kind)
    path = tmp_path / "a.img"
    found = set()
    for share in (0.9, 0.6, 0.3):
        path.write_bytes(data[: int(len(data) * share)])
        found.add(reason(path))
    assert all("truncated" in text or "damaged" in text for text in found), found
    if kind in ("JPEG", "PNG"):
        assert "truncated" in found
    path.write_bytes(data[:9])
    assert any(word in reason(path) for word in ("truncated", "damaged", "not an image"))


def test_a_header_that_claims_too_many_pixels_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(6_000, 5_000))  # below Pillow's own limit, above ours
    assert reason(path) == "6000 x 5000 pixels: larger than 25 megapixels"
    path.write_bytes(png_header(12_000, 12_000))  # where Pillow warns
    assert reason(path) == "12000 x 12000 pixels: larger than 25 megapixels"
    path.write_bytes(png_header(100_000, 100_000))  # where Pillow raises
    assert reason(path) == "10000000000 pixels: larger than 25 megapixels"
    path.write_bytes(png_header(100, 200))
    assert reason(path, max_pixels=10_000) == "100 x 200 pixels: larger than 0.01 megapixels"


def test_pixels_without_a_known_range_are_refused(tmp_path):
    assert "floating-point" in reason(save(Image.new("F", (32, 24), 0.5), tmp_path / "f.tif"))
    assert "32-bit" in reason(save(Image.new("I", (32, 24), 1_000_000), tmp_path / "i.tif"))
    assert "32-bit" in reason(save(Image.new("I", (32, 24), -1), tmp_path / "n.tif"))


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert reason(tmp_path / "a.jpg") == "not a regular file"


def test_a_link_to_itself_is_told(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
    assert "symbolic links" in reason(tmp_path / "a.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_told(tmp_path, picture):
    path = save(picture, tmp_path / "a.png")
    path.chmod(0)
    assert reason(path) == "permission denied"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied"), "permission denied"),
        (OSError(5, "Input/output error"), "input/output error"),
        (MemoryError(), "does not fit into memory"),
    ],
)
def test_an_error_of_the_disk_is_told(tmp_path, picture, monkeypatch, error, text):
    path = save(picture, tmp_path / "a.png")

    def fail(*_):
        raise error

    monkeypatch.setattr(Path, "open", fail)
    assert reason(path) == text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "TIFF-LZW", "WEBP", "PPM"])
def test_damaged_bytes_give_pixels_or_a_reason(tmp_path, picture, kind):
    """No decoder error and no warning gets out, whatever byte is wrong."""
    rng = np.random.default_rng(7)
    options = {"compression": "tiff_lzw"} if kind == "TIFF-LZW" else {}
    data = encoded(picture, kind.removesuffix("-LZW"), **options)
    path = tmp_path / "a.img"
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 400), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_image(path, (8, 8)).shape == (8, 8, 3)
        except UnreadableImage as error:
            assert error.reason == str(error) and "\n" not in error.reason and error.reason.strip()
