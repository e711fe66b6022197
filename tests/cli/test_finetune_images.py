"""``edge-sel finetune`` on a folder of images: new classes, odd formats, and files that are no images."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.cli.shell import PACK
from tests.edge.sessions import tree

SHORT = ["--plan", "bn", "--threads", 1]


def test_new_classes_extend_those_of_the_pack(edge_sel, here, digits_folder):
    shutil.copytree(digits_folder, "data")
    for number in range(6):
        (here / "data" / "star").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (200, number, 30)).save(here / "data" / "star" / f"{number}.png")
    arguments = ["finetune", PACK, "--data", "data", "--out", "run", "--new-classes", "extend", "--json", *SHORT]
    result = json.loads(edge_sel(*arguments).out)
    assert result["classes"] == [*map(str, range(10)), "star"]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png():
    """A few bytes that claim 100,000 x 100,000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.fixture
def mixed(tmp_path, digits_folder):
    """Good images in every odd format, and among them six files that are none."""
    root = tmp_path / "mixed"
    shutil.copytree(digits_folder, root)
    picture = Image.open(next((root / "7").iterdir())).convert("RGB")
    grey = np.asarray(picture.convert("L"), np.uint16) * 257
    picture.convert("CMYK").save(root / "7" / "cmyk.jpg")
    Image.fromarray(grey).save(root / "7" / "sixteen.png")
    picture.quantize(8).save(root / "7" / "palette.png")
    other = Image.new("P", picture.size)
    picture.quantize(8).save(root / "7" / "moving.gif", save_all=True, append_images=[other, other], duration=50)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.resize((64, 48)).save(root / "7" / "turned.jpg", exif=exif)
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    large.save(root / "7" / "whole.jpg")
    content = (root / "7" / "whole.jpg").read_bytes()
    (root / "1" / "truncated.jpg").write_bytes(content[: len(content) // 3])
    (root / "2" / "text.jpg").write_text("this is no picture")
    (root / "3" / "empty.png").write_bytes(b"")
    (root / "4" / "huge.png").write_bytes(huge_png())
    (root / "5" / "notes.txt").write_text("labels were checked twice")
    picture.save(root / "loose.png")
    (root / "Thumbs.db").write_bytes(b"clutter")
    return root


def test_a_mixed_folder_trains_on_every_image_and_names_the_files_that_are_none(edge_sel, mixed):
    before = tree(mixed)
    result = edge_sel("finetune", PACK, "--data", mixed, "--out", "run", "--json", *SHORT)
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    skipped = {entry["path"]: entry["reason"] for entry in summary["skipped_images"]}
    assert skipped.keys() == {
        "1/truncated.jpg", "2/text.jpg", "3/empty.png", "4/huge.png", "5/notes.txt", "loose.png",
    }  # fmt: skip
    assert all(skipped.values())
    assert "truncated" in skipped["1/truncated.jpg"] and "empty" in skipped["3/empty.png"]
    assert "megapixels" in skipped["4/huge.png"]
    again = summary["duplicates"]["left_out"]
    assert summary["images"]["train"] + summary["images"]["validation"] + len(again) == 120 + 6
    assert again and set(again) <= {
        f"7/{name}" for name in ("cmyk.jpg", "sixteen.png", "palette.png", "moving.gif")
    } | {path.relative_to(mixed).as_posix() for path in (mixed / "7").iterdir()}
    assert tree(mixed) == before
    shown = edge_sel("finetune", PACK, "--data", mixed, "--out", "again", *SHORT)
    assert "skipped 6 files" in shown.out
