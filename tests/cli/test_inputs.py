"""Packs, images and weights that cannot be used: one line that names them, exit status 4, and nothing changed."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.cli.shell import BAD_INPUT, PACK, refused
from tests.edge.sessions import tree


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), shade, np.uint8)).save(path)


def make_data(root, counts):
    for name, count in counts.items():
        for number in range(count):
            picture(root / name / f"{number}.png", number)
    return root


# Packs


def folder_pack(here):
    with zipfile.ZipFile(PACK) as archive:
        archive.extractall(here / "pack")
    return here / "pack"


def damaged_pack(kind, here):
    pack = folder_pack(here)
    if kind == "missing":
        return here / "nothing"
    if kind == "not a pack":
        return make_data(here / "pictures", {"0": 1})
    if kind == "a picture":
        return make_data(here / "pictures", {"0": 1}) / "0" / "0.png"
    if kind == "missing file":
        (pack / "eval.onnx").unlink()
    elif kind == "flipped bit":
        content = bytearray((pack / "weights.safetensors").read_bytes())
        content[len(content) // 2] ^= 1
        (pack / "weights.safetensors").write_bytes(content)
    elif kind == "newer":
        manifest = json.loads((pack / "manifest.json").read_text())
        (pack / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    elif kind == "manifest changed":
        manifest = json.loads((pack / "manifest.json").read_text())
        (pack / "manifest.json").write_text(json.dumps({**manifest, "optimizer": "adam"}))
    elif kind == "empty file":
        (here / "empty.edgepack").write_bytes(b"")
        return here / "empty.edgepack"
    elif kind == "cut short":
        (here / "cut.edgepack").write_bytes(PACK.read_bytes()[:-5000])
        return here / "cut.edgepack"
    return pack


PACKS = {
    "missing": ["no such pack"],
    "not a pack": ["manifest.json"],
    "a picture": ["cannot be read"],
    "missing file": ["eval.onnx", "missing"],
    "flipped bit": ["weights.safetensors", "sha256"],
    "newer": ["format 99", "pip install -U"],
    "manifest changed": ["digest"],
    "empty file": ["cannot be read"],
    "cut short": ["cannot be read"],
}


@pytest.mark.parametrize("kind", PACKS)
def test_a_pack_that_cannot_be_used_is_refused_by_every_command(kind, edge_sel, here, digits_folder):
    pack = damaged_pack(kind, here)
    for command in (["finetune", pack, "--data", digits_folder], ["evaluate", pack, "--data", digits_folder]):
        refused(edge_sel(*command), BAD_INPUT, *PACKS[kind], pack.name)
    for command in ("inspect", "verify"):
        refused(edge_sel("pack", command, pack), BAD_INPUT, *PACKS[kind])


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "eval.onnx"])
def test_damage_that_cannot_even_be_unpacked(name, edge_sel, here):
    """The first bits of a compressed file say how it is compressed; 11 is no way."""
    content = bytearray(PACK.read_bytes())
    with zipfile.ZipFile(PACK) as archive:
        at = archive.getinfo(name).header_offset
    extra = int.from_bytes(content[at + 28 : at + 30], "little")
    content[at + 30 + len(name) + extra] |= 0b110
    (here / "bad.edgepack").write_bytes(content)
    refused(edge_sel("pack", "inspect", "bad.edgepack"), BAD_INPUT, "bad.edgepack")


# Data


def bad_data(kind, here, digits_folder):
    root = here / "data"
    if kind == "a file":
        root.write_text("not a folder")
    elif kind == "empty":
        root.mkdir()
    elif kind == "empty classes":
        (root / "0").mkdir(parents=True)
    elif kind == "loose images":
        picture(root / "1.png")
    elif kind == "unreadable":
        for name in "01":
            (root / name).mkdir(parents=True)
            (root / name / "1.jpg").write_text("no picture")
    elif kind == "one class":
        make_data(root, {"3": 5})
    elif kind == "one image of a class":
        make_data(root, {"3": 5, "4": 1})
    elif kind == "unknown class":
        shutil.copytree(digits_folder, root)
        picture(root / "11" / "1.png")
    elif kind == "splits":
        make_data(root / "train", {"0": 2, "1": 2})
        make_data(root / "test", {"0": 2, "1": 2})
    return root


DATA = {
    "missing": ["no such folder"],
    "a file": ["a file, not a folder"],
    "empty": ["no class folders"],
    "empty classes": ["no images"],
    "loose images": ["1 images but no class folders"],
    "unreadable": ["no readable images", "2 skipped", "0/1.jpg"],
    "one class": ["one class only (3)"],
    "one image of a class": ["4: 1"],
    "unknown class": ["11 (nearest: 1)", "--new-classes extend"],
    "splits": ["splits"],
}


@pytest.mark.parametrize("kind", DATA)
def test_images_that_cannot_be_used_are_refused_and_left_as_they_are(kind, edge_sel, here, digits_folder):
    root = bad_data(kind, here, digits_folder)
    before = tree(here)
    refused(edge_sel("finetune", PACK, "--data", root, "--out", "run", "--json"), BAD_INPUT, *DATA[kind])
    assert tree(here) == before


def test_test_images_are_checked_too(edge_sel):
    refused(edge_sel("finetune", "--test", "nowhere"), BAD_INPUT, "nowhere", "no such folder")


def test_weights_of_something_else(edge_sel, here, digits_folder):
    (here / "bad.safetensors").write_bytes(b"bad")
    for path in ("bad.safetensors", "none.safetensors"):
        refused(edge_sel("evaluate", PACK, "--data", digits_folder, "--weights", path), BAD_INPUT, path)


def test_weights_of_another_width(edge_sel, here, digits_folder):
    """The same names in the same order do not make them fit."""
    from safetensors.numpy import save_file

    from edge_sel.pack.reader import open_pack

    weights = {name: np.repeat(value, 2, axis=-1) for name, value in open_pack(PACK).weights().items()}
    save_file(weights, here / "wide.safetensors")
    result = edge_sel("evaluate", PACK, "--data", digits_folder, "--weights", "wide.safetensors")
    refused(result, BAD_INPUT, "wide.safetensors", "are another model's")
