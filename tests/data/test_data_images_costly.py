"""What a file may take is bounded before its pixels are decoded."""

import io
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from picture_files import SIZE, encoded
from PIL import Image

from edge_sel.data.folder import load_folder, printable
from edge_sel.data.images import MOST_SCANS, UnreadableImage, count_scans, read_image
from edge_sel.errors import DataError, EdgeSelError


def progressive(picture, scans):
    """A progressive JPEG with one of its scans repeated."""
    content = encoded(picture, "JPEG", progressive=True)
    at = content.rindex(b"\xff\xda")
    end = content.rindex(b"\xff\xd9")
    return content[:at] + (scans - count_scans(io.BytesIO(content)) + 1) * content[at:end] + content[end:]


def test_scans_are_counted_and_bounded(tmp_path, picture):
    assert count_scans(io.BytesIO(encoded(picture, "JPEG"))) == 1
    assert count_scans(io.BytesIO(progressive(picture, 30))) == 30
    path = tmp_path / "a.jpg"
    path.write_bytes(progressive(picture, MOST_SCANS))
    assert read_image(path, SIZE).shape == (*SIZE, 3)
    path.write_bytes(progressive(picture, 5000))
    with pytest.raises(UnreadableImage, match=f"more than {MOST_SCANS} scans"):
        read_image(path, SIZE)


def test_scans_of_a_thumbnail_do_not_count(picture):
    content, thumbnail = encoded(picture, "JPEG"), encoded(picture, "JPEG", progressive=True)
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    assert count_scans(io.BytesIO(content[:2] + segment + content[2:])) == 1


@pytest.mark.parametrize("content", [b"", b"\xff", b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"\xff" * 5000])
def test_scans_of_damaged_files_end(content):
    assert count_scans(io.BytesIO(content)) <= 1


def test_a_large_jpeg_that_is_reduced_while_read_may_declare_more(tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg")
    Image.new("RGB", (400, 300)).save(tmp_path / "p.jpg", progressive=True)
    assert read_image(tmp_path / "a.jpg", (8, 8), max_pixels=30_000).shape == (8, 8, 3)
    for name, limit in (("p.jpg", 30_000), ("a.jpg", 29_999)):
        with pytest.raises(UnreadableImage, match="larger than"):
            read_image(tmp_path / name, (8, 8), max_pixels=limit)


PEAK = """\
import resource, sys
from edge_sel.data.images import UnreadableImage, read_image
from PIL import Image
Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(sys.argv[1], (32, 32))
except UnreadableImage:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("mode", "side", "name", "most_mb"),
    [("RGB", 8000, "a.webp", 20), ("I;16", 4900, "a.png", 150), ("RGB", 4900, "a.tif", 150)],
)
def test_memory_of_a_small_file_of_many_pixels(mode, side, name, most_mb, tmp_path):
    options = {"lossless": True, "method": 0} if name.endswith("webp") else {"compression": "tiff_lzw"}
    Image.new(mode, (side, side)).save(tmp_path / name, **({} if name.endswith("png") else options))
    shown = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / name], capture_output=True, text=True, check=True, env=os.environ
    )
    assert int(shown.stdout) * 1024 / (1 if sys.platform == "linux" else 1024) < most_mb * 1e6


def test_libtiff_prints_nothing(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = bytearray(encoded(noise, "TIFF", compression="tiff_lzw"))
    content[20:3000] = bytes(b"\xff" * 2980)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / "a.tif", SIZE)
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_the_limit_reaches_images_that_are_decoded_again(make_tree):
    root = make_tree({"cat": 2, "dog": 2})
    assert len(load_folder(root, (8, 8), cache_bytes=0, max_pixels=64).read([0, 3])) == 2
    with pytest.raises(DataError, match="4 skipped"):
        load_folder(root, (8, 8), max_pixels=63)


def test_names_that_differ_only_in_their_unicode_form_are_used_or_listed(tmp_path):
    for form, shade in (("NFC", 10), ("NFD", 200)):
        folder = tmp_path / unicodedata.normalize(form, "é")
        if folder.exists():
            pytest.skip("this file system knows one form only")
        folder.mkdir()
        for name in ("same.png", f"{form}.png"):
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(folder / name)
    images = load_folder(tmp_path, (8, 8))
    assert images.classes == ("é",) and images.ids == ("é/NFC.png", "é/NFD.png", "é/same.png")
    assert [skipped.path for skipped in images.skipped] == ["é/same.png"]
    with pytest.raises(DataError, match="how their names are encoded"):
        load_folder(tmp_path, (8, 8), classes=["é", "e\u0301"])


def test_control_characters_in_names_are_escaped(tmp_path):
    name = "a\x1b[31m\nb\u202e"
    (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / name / "\x07.png")
    (tmp_path / name / "\x1b.png").write_text("no picture")
    images = load_folder(tmp_path, (8, 8))
    for text in (*images.classes, *images.ids, images.skipped[0].path):
        assert text.isprintable()
    assert images.classes == (printable(name),) == ("a\\x1b[31m\\nb\\u202e",)
    assert load_folder(tmp_path, (8, 8), classes=[name]).classes == (name,)
    assert str(EdgeSelError("what", where=name)) == "what: a\\x1b[31m\\nb\\u202e"
