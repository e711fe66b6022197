"""What the manifest says of a quantized backbone is checked; a pack without one opens as before."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import PackError
from edge_sel.pack import reader
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.reader import open_pack
from tests.pack.conftest import rewrite_manifest


@pytest.fixture
def unpacked(tmp_path):
    """The built-in pack as a folder."""
    with zipfile.ZipFile(reader.builtin_pack().path) as archive:
        archive.extractall(tmp_path / "pack")
    return tmp_path / "pack"


def first(body):
    return body["backbones"]["last"]["int8"]["convolutions"][0]


def second(body):
    return body["backbones"]["last"]["int8"]["convolutions"][1]


FOREIGN = {
    "scale 0": lambda body: second(body).update(input_scale=0.0),
    "negative scale": lambda body: second(body).update(input_scale=-0.1),
    "endless scale": lambda body: second(body).update(input_scale=float("inf")),
    "no number": lambda body: second(body).update(input_scale=float("nan")),
    "a word": lambda body: second(body).update(input_scale="much"),
    "another weight": lambda body: first(body).update(weight="head.weight"),
    "another bias": lambda body: first(body).update(bias="head.bias"),
    "another statistic": lambda body: first(body)["norm"].__setitem__(2, "head.bias"),
    "three of four": lambda body: first(body)["norm"].__delitem__(0),
    "another constant": lambda body: body["backbones"]["last"]["int8"].update(constants=["head.weight"]),
    "one key more": lambda body: first(body).update(zero=0),
    "one key less": lambda body: first(body).__delitem__("weight"),
    "no list": lambda body: body["backbones"]["last"].update(int8=3),
    "no file": lambda body: body["files"].__delitem__("backbone-last-int8.onnx"),
    "another file": lambda body: body["backbones"]["last"]["int8"].update(graph="other.onnx"),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_quantized_variant_is_refused(foreign, unpacked):
    rewrite_manifest(unpacked, FOREIGN[foreign])
    with pytest.raises(PackError) as error:
        open_pack(unpacked)
    assert error.value.where == str(unpacked) and error.value.fix


def test_a_pack_from_before_there_were_quantized_variants_has_plain_backbones(unpacked):
    def forget(body):
        for backbone in body["backbones"].values():
            del backbone["int8"]

    rewrite_manifest(unpacked, forget)
    pack = open_pack(unpacked)
    assert pack.backbone("last").int8 is None
    assert OrtEngine(1).backbone(pack, "last", pack.weights(), int8=(-1.0, 1.0)) is None
    features = OrtEngine(1).backbone(pack, "last", pack.weights())(np.zeros((2, 3, 16, 16), np.float32))
    assert features.shape == (2, *pack.backbone("last").shape)


def test_the_builtin_pack_has_quantized_variants_and_is_small():
    path = reader.builtin_pack().path
    backbones = open_pack(path).manifest.backbones
    assert backbones.keys() == {"head", "last", "last2"} and all(info.int8 for info in backbones.values())
    assert path.stat().st_size < 600_000


def test_integers_are_nowhere_in_the_pack(unpacked):
    """They would be those of other statistics than the device's."""
    pack = open_pack(unpacked)
    sizes = [len(pack.graph(info.int8.graph)) for info in pack.manifest.backbones.values()]
    assert 0 < max(sizes) < 8_000 < len(pack.graph(WEIGHTS))


def test_a_session_keeps_what_it_reads_in_place(unpacked):
    """The integers live as long as the backbone does."""
    pack = open_pack(unpacked)
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    backbone = OrtEngine(1).backbone(pack, "head", pack.weights(), int8=(-4.0, 4.0))
    before = backbone(images)
    rubbish = [np.full(2304 * (1 + i % 9), 7, np.int8) for i in range(2000)]
    assert backbone(images).tobytes() == before.tobytes() and rubbish
