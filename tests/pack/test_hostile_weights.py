"""Weights, anchors and manifests that somebody meant to be harmful are refused in one line."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from edge_sel.arrays import tensor_places
from edge_sel.errors import PackError
from edge_sel.pack.anchors import ANCHORS
from edge_sel.pack.manifest import MANIFEST, WEIGHTS
from edge_sel.pack.reader import open_pack
from tests.pack.hostile import (
    builtin_files,
    join_tensors,
    refused,
    sealed,
    split_tensors,
    with_file,
    with_header,
    with_manifest,
    write_zip,
)

# Weights


def changed_weights(change):
    def make():
        weights = load(builtin_files()[0][WEIGHTS])
        change(weights)
        return with_file(WEIGHTS, save(weights))

    return make


def entry(**changes):
    return lambda: with_header(lambda header: header["head.bias"].update(changes))


def raw_header(text):
    return lambda: with_file(WEIGHTS, join_tensors(text, b"\0" * 100))


def spoiled(value):
    return changed_weights(lambda weights: weights["head.bias"].__setitem__(3, value))


TENSORS = {
    "NaN": spoiled(np.nan),
    "infinite": spoiled(-np.inf),
    "one less": changed_weights(lambda weights: weights.pop("head.bias")),
    "of other classes": changed_weights(lambda weights: weights.update({"head.bias": np.zeros(11, np.float32)})),
    "doubles": changed_weights(lambda weights: weights.update({"head.bias": np.zeros(10)})),
    "an unknown type": entry(dtype="BF16"),
    "a type that is a list": entry(dtype=["F32"]),
    "a negative size": entry(shape=[-10]),
    "a size of 2^70": entry(shape=[1 << 70, 0]),
    "a size with a fraction": entry(shape=[10.0]),
    "a size that is true": entry(shape=[True]),
    "too many dimensions": entry(shape=[10] + [1] * 30),
    "no offsets": entry(data_offsets=[]),
    "offsets backwards": entry(data_offsets=[40, 0]),
    "offsets beyond": entry(data_offsets=[1 << 40, (1 << 40) + 40]),
    "shared bytes": entry(data_offsets=[4, 44]),
    "one key more": entry(more=1),
    "notes of numbers": lambda: with_header(lambda header: header.update(__metadata__={"a": 1})),
    "notes that are none": lambda: with_header(lambda header: header.update(__metadata__=[])),
    "an entry that is a number": lambda: with_header(lambda header: header.update(a=1)),
    "a name with a line break": lambda: with_header(
        lambda header: header.update({"a\nb": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    ),
    "one name twice": raw_header(
        b'{"a":{"dtype":"U8","shape":[100],"data_offsets":[0,100]},"a":{"dtype":"U8","shape":[100],"data_offsets":[0,100]}}'
    ),
    "a list": raw_header(b"[]"),
    "nested": raw_header(b"[" * 100_000),
    "no JSON": raw_header(b"\xff\xfe"),
    "a number of a million digits": raw_header(b'{"a":' + b"9" * 1_000_000 + b"}"),
    "a header longer than the file": lambda: with_file(WEIGHTS, b"\xff" * 8 + b"{}"),
    "no header": lambda: with_file(WEIGHTS, b"\0\0"),
    "bytes behind the end": lambda: with_file(WEIGHTS, builtin_files()[0][WEIGHTS] + b"\0"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_are_numbers_where_their_header_says(case, tmp_path):
    refused(write_zip(tmp_path / "bad.edgepack", TENSORS[case]()))


@pytest.mark.parametrize("change", [{"dtype": "F32"}, {"shape": [1, 10**9]}, {"data_offsets": [0, 1 << 50]}], ids=str)
def test_anchors_have_the_same_sanity(change, tmp_path):
    files = with_header(lambda header: header["labels"].update(change), ANCHORS)
    refused(write_zip(tmp_path / "bad.edgepack", files), ANCHORS)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_anchors_of_other_types_are_refused_when_they_are_read(kind, tmp_path):
    stored = load(builtin_files()[0][ANCHORS])
    for name in ("ends", "labels"):
        changed = with_file(ANCHORS, save({**stored, name: stored[name].astype(kind)}))
        with pytest.raises(PackError):
            assert open_pack(write_zip(tmp_path / "bad.edgepack", changed)).anchors


# The manifest

MANIFESTS = {
    "mean NaN": lambda body: body["model"].update(mean=[math.nan] * 3),
    "std zero": lambda body: body["model"].update(std=[0.0] * 3),
    "one mean": lambda body: body["model"].update(mean=[0.5]),
    "a gigapixel": lambda body: body["model"].update(image_size=[1 << 30, 1 << 30]),
    "no classes": lambda body: body["model"].update(classes=[]),
    "one class twice": lambda body: body["model"].update(classes=["a"] * 10),
    "a class that clears the screen": lambda body: body["model"].update(classes=["\x1b[2J", *"bcdefghij"]),
    "an unknown head": lambda body: body["model"].update(head=["nothing"]),
    "more parameters than weights": lambda body: body["model"].update(parameters=1 << 60),
    "an unknown weight": lambda body: body["plans"]["head"].update(trainable=["nothing"]),
    "a plan under another name": lambda body: body["plans"].update(other=body["plans"]["head"]),
    "too many channels": lambda body: body["plans"]["last-c25"]["channels"].update({"stages.2.0.conv1.weight": 65}),
    "negative FLOPs": lambda body: body["plans"]["head"].update(flops_train=-1),
    "huge features": lambda body: body["backbones"]["head"].update(shape=[1 << 40]),
    "no features": lambda body: body["backbones"]["head"].update(shape=[]),
    "gamma infinite": lambda body: body["calibration"].update(gamma=math.inf),
    "weights as a graph": lambda body: body["plans"]["head"].update(train=WEIGHTS),
    "another plan's graph": lambda body: body["plans"]["head"].update(train="train-last.onnx"),
    "five thousand plans on one graph": lambda body: body["plans"].update(
        {f"p{n}": {**body["plans"]["head"], "name": f"p{n}"} for n in range(5000)}
    ),
    "one graph twice": lambda body: body["plans"]["head"].update(score="train-head.onnx"),
    "a plan that clears the screen": lambda body: body["plans"].update({"\x1b[2J": 7}),
    "a long word": lambda body: body.update(optimizer="x" * 100_000),
    "another optimizer": lambda body: body.update(optimizer="adam"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_makes_sense(case, tmp_path):
    refused(write_zip(tmp_path / "bad.edgepack", with_manifest(MANIFESTS[case])))


# Anything at all


@given(data=st.data())
def test_a_mutated_header_is_read_or_refused(data):
    header, tail = split_tensors(builtin_files()[0][WEIGHTS])
    text = bytearray(str(header).replace("'", '"').encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    content = join_tensors(bytes(text), tail)
    try:
        places = tensor_places(content)
    except ValueError as error:
        assert not isinstance(error, PackError)
    else:
        assert all(place.offset >= 0 and place.offset + place.length <= len(content) for place in places.values())


def test_a_manifest_of_nested_lists(tmp_path):
    files, body = builtin_files()
    files = {**sealed(files, body), MANIFEST: b"[" * 1_000_000}
    refused(write_zip(tmp_path / "bad.edgepack", files, zipfile.ZIP_STORED))


@given(data=st.data())
@settings(max_examples=12)
def test_a_pack_with_a_mutated_file_is_opened_or_refused(data):
    files, body = builtin_files()
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(content) - 1, 6000)))  # where headers stand
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    with TemporaryDirectory() as folder:
        path = write_zip(Path(folder) / "bad.edgepack", sealed({**files, name: bytes(content)}, body))
        try:
            pack = open_pack(path)
            assert all(np.isfinite(value).all() for value in pack.weights().values())
            assert pack.anchors is None or len(pack.anchors.known)
        except PackError as error:
            assert str(error).isprintable() and name in str(error)
