"""The warmup checkpoint: what it brings back, and what it refuses to read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edge_sel.errors import BadInputError, SetupError, UsageError
from edge_sel.models.registry import MODELS, build
from edge_sel.server import warmup
from edge_sel.server.source.base import WarmupInfo
from edge_sel.server.warmup import FORMAT

INFO = WarmupInfo(
    "resnet-c-small", ("ä", "b c"), (16, 12), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), {"flip": True, "epochs": 3}
)


@pytest.fixture
def saved(tmp_path, one_thread):
    torch.manual_seed(0)
    model = build(INFO.model, 2, INFO.image_size)
    warmup.save(tmp_path / "warm.safetensors", model, INFO)
    return tmp_path / "warm.safetensors", model


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_comes_back(tmp_path, one_thread, name):
    info = WarmupInfo(name, ("ä", "b c"), (16, 16), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), {"flip": True})
    model = build(name, 2, info.image_size).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.rand(value.shape) * 100)
    path = tmp_path / "deep" / "er" / "warm.safetensors"
    warmup.save(path, model, info)
    loaded, read = warmup.load(path)
    assert read == info and not loaded.training
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for key, value in loaded.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), expected[key].numpy(), err_msg=key)


def test_images_that_training_never_saw_are_remembered(saved):
    path, model = saved
    warmup.save(path, model, replace(INFO, held_out=("ä/1.png", "b c/2.png")))
    assert warmup.load(path)[1].held_out == ("ä/1.png", "b c/2.png")


def test_a_checkpoint_of_an_older_version_has_seen_everything(saved):
    path, model = saved
    older = {key: value for key, value in asdict(INFO).items() if key != "held_out"}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": FORMAT, "info": json.dumps(older)})
    assert warmup.load(path)[1] == INFO and INFO.held_out == ()


def test_the_header_is_plain_json(saved):
    with safe_open(saved[0], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == FORMAT and json.loads(metadata["info"])["classes"] == ["ä", "b c"]


@pytest.mark.parametrize(
    "failure", (OSError(28, "No space left on device"), KeyboardInterrupt()), ids=("full", "killed")
)
@pytest.mark.parametrize("where", ((os, "open"), (os, "fsync"), (Path, "replace")), ids=lambda at: at[1])
def test_a_save_that_fails_leaves_the_old_checkpoint(where, failure, saved, monkeypatch):
    path, model = saved
    before = path.read_bytes()

    def fail(*given):
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(*where, fail)
        with pytest.raises(SetupError if isinstance(failure, OSError) else KeyboardInterrupt) as error:
            warmup.save(path, model, replace(INFO, training={}))
    assert path.read_bytes() == before
    if isinstance(failure, OSError):
        assert "No space left" in str(error.value) and error.value.where == str(path)
        assert [p.name for p in path.parent.iterdir()] == [path.name]
    warmup.save(path, model, replace(INFO, training={}))
    assert warmup.load(path)[1].training == {}


def test_a_missing_checkpoint_names_the_command_that_makes_one(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(BadInputError, match=r"no such checkpoint.*edge-sel pretrain"):
            warmup.load(path)


@pytest.mark.parametrize("content", (b"", b"PK\x03\x04 not tensors", b"\x80\x04\x95 a pickle", b"{}" * 400))
def test_what_is_not_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "warm.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="not a safetensors file"):
        warmup.load(path)


def test_a_file_cut_short_at_any_length_is_refused(saved):
    path = saved[0]
    whole = path.read_bytes()
    for length in (1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInputError, match="not a safetensors file"):
            warmup.load(path)


def test_somebody_elses_safetensors_are_refused(saved):
    path, model = saved
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    for metadata in (None, {"format": "pt"}, {"format": "edge-sel-warmup-2", "info": "{}"}):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(BadInputError, match="not an edge-sel warmup checkpoint"):
            warmup.load(path)


def headers():
    raw = {
        "model": "resnet-c-small", "classes": ["a", "b"], "image_size": [16, 12], "mean": [0.5] * 3, "std": [0.5] * 3,
        "training": {},
    }  # fmt: skip
    yield "no info", None
    yield "not json", "{"
    yield "a list", "[1, 2]"
    yield "a number", "7"
    for key in raw:
        yield f"without {key}", json.dumps({k: v for k, v in raw.items() if k != key})
    yield "one size", json.dumps({**raw, "image_size": [16]})
    yield "size of words", json.dumps({**raw, "image_size": ["a", "b"]})
    yield "classes a number", json.dumps({**raw, "classes": 2})
    yield "mean of words", json.dumps({**raw, "mean": ["x"] * 3})
    yield "held out a number", json.dumps({**raw, "held_out": 3})
    yield "training a number", json.dumps({**raw, "training": 3})


@pytest.mark.parametrize("info", [h[1] for h in headers()], ids=[h[0] for h in headers()])
def test_a_damaged_header_is_refused(saved, info):
    path, model = saved
    metadata = {"format": FORMAT} | ({} if info is None else {"info": info})
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, metadata=metadata)
    with pytest.raises(BadInputError, match="header cannot be read"):
        warmup.load(path)


def test_weights_that_do_not_fit_their_model_are_refused(saved):
    path, model = saved
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    one_less = {n: v for n, v in tensors.items() if n != "head.bias"}
    for wrong in (one_less, {**tensors, "extra": torch.zeros(1)}, {**tensors, "head.bias": torch.zeros(3)}):
        save_file(wrong, path, metadata=metadata)
        with pytest.raises(BadInputError, match=r"do not fit.*resnet-c-small"):
            warmup.load(path)


def test_a_model_that_this_version_does_not_know(saved):
    path, model = saved
    warmup.save(path, model, WarmupInfo("resnet-d", INFO.classes, INFO.image_size, INFO.mean, INFO.std, {}))
    with pytest.raises(UsageError, match="unknown model: resnet-d"):
        warmup.load(path)
