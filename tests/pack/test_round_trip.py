"""What is written comes back, weights are stored once, and plain ONNX Runtime can use the folder as it is."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edge_sel.engines.base import Batch, Hyper
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import UsageError
from edge_sel.pack.manifest import DEEP_HEAD, MANIFEST, OPTIMIZER_STATE, WEIGHTS
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.writer import write_pack


def graph_bytes(pack: Pack) -> dict[str, bytes]:
    return {name: pack.graph(name) for name in pack.manifest.files if name.endswith(".onnx")}


def test_everything_comes_back(place, contents):
    manifest, weights, graphs = contents
    pack = open_pack(place)
    assert dataclasses.replace(pack.manifest, files={}) == manifest
    assert pack.manifest.files.keys() == {WEIGHTS, *graphs}
    read = pack.weights()
    assert read.keys() == weights.keys()
    for name, value in weights.items():
        assert read[name].dtype == value.dtype and read[name].tobytes() == value.tobytes()
    for name, graph in graphs.items():
        back = onnx.load_model_from_string(pack.graph(name))
        assert back.graph.node == graph.graph.node and back.graph.input == graph.graph.input
        assert back.graph.output == graph.graph.output and back.opset_import == graph.opset_import
    assert pack.eval_graph == pack.graph("eval.onnx")
    assert pack.path == place


def test_every_call_gives_fresh_weights(place):
    pack = open_pack(place)
    for value in pack.weights().values():
        value[...] = 0
    assert all(value.any() for value in pack.weights().values())


def test_folder_and_file_hold_the_same(tmp_path, contents):
    for name in ("pack", "pack.edgepack"):
        write_pack(tmp_path / name, *contents)
    with zipfile.ZipFile(tmp_path / "pack.edgepack") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            p.name: p.read_bytes() for p in (tmp_path / "pack").iterdir()
        }
    folder, file = open_pack(tmp_path / "pack"), open_pack(tmp_path / "pack.edgepack")
    assert folder.manifest == file.manifest and folder.digest == file.digest


def test_the_digest_tells_packs_apart(tmp_path, contents):
    manifest, weights, graphs = contents
    other_weights = {**weights, "head.bias": weights["head.bias"] + 1}
    other_plans = dataclasses.replace(manifest, plans={"head": manifest.plans["head"]})
    for name, content in {
        "same": contents,
        "again": contents,
        "weights": (manifest, other_weights, graphs),
        "plans": (other_plans, weights, graphs),
    }.items():
        write_pack(tmp_path / name, *content)
    digests = {name: open_pack(tmp_path / name).digest for name in ("same", "again", "weights", "plans")}
    assert digests["same"] == digests["again"]
    assert len(set(digests.values())) == 3


def test_the_digest_of_a_pack_is_that_of_the_manifest_it_was_written_with(digits_pack):
    """What is derived from a pack when it is opened has no part in its identity."""
    with zipfile.ZipFile(digits_pack.path) as archive:
        written = archive.read(MANIFEST)
    assert digits_pack.digest == hashlib.sha256(written).hexdigest()[:16]


def test_another_manifest_for_the_same_files(digits_pack):
    fewer = dataclasses.replace(digits_pack.manifest, plans={"head": digits_pack.plan("head")})
    other = digits_pack.with_manifest(fewer)
    assert other.manifest is fewer and other.path == digits_pack.path and other.digest != digits_pack.digest
    assert graph_bytes(other) == graph_bytes(digits_pack) and set(digits_pack.manifest.plans) > {"head"}


def test_a_file_is_the_same_whenever_it_is_written(tmp_path, contents, monkeypatch):
    write_pack(tmp_path / "a.edgepack", *contents)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *a: time.gmtime(2e9))
    manifest, weights, graphs = contents
    write_pack(tmp_path / "b.edgepack", manifest, {n: v.copy() for n, v in weights.items()}, dict(graphs))
    assert (tmp_path / "a.edgepack").read_bytes() == (tmp_path / "b.edgepack").read_bytes()


def test_weights_are_stored_once(tmp_path, digits_pack):
    graphs = {n: onnx.load_model_from_string(b) for n, b in graph_bytes(digits_pack).items()}
    weights = digits_pack.weights()
    for name, graph in graphs.items():
        for tensor in graph.graph.initializer:
            if (
                "-int8" in name and "::" in tensor.name and not tensor.name.startswith(DEEP_HEAD)
            ):  # made by the device, see test_quantized.py
                assert tensor.data_location == onnx.TensorProto.EXTERNAL and not tensor.raw_data
                continue
            assert (tensor.name in weights) == (tensor.data_location == onnx.TensorProto.EXTERNAL), (name, tensor.name)
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                assert not tensor.raw_data and not tensor.float_data
                entries = {e.key: e.value for e in tensor.external_data}
                assert entries["location"] == WEIGHTS
    total = sum(value.nbytes for value in weights.values())
    sizes = {n: f.bytes for n, f in digits_pack.manifest.files.items()}
    assert total <= sizes[WEIGHTS] < 1.1 * total
    large = {key: value.tobytes() for key, value in weights.items() if value.nbytes >= 256}
    assert len(large) > 8
    for name, content in graph_bytes(digits_pack).items():
        for key, value in large.items():
            assert value not in content, f"{name} holds a copy of {key}"


def test_external_references_point_at_the_values(folder, contents):
    weights = contents[1]
    raw = (folder / WEIGHTS).read_bytes()
    seen = set()
    for path in folder.glob("*.onnx"):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            entries = {e.key: e.value for e in tensor.external_data}
            if entries:
                start, length = int(entries["offset"]), int(entries["length"])
                assert raw[start : start + length] == weights[tensor.name].tobytes()
                seen.add(tensor.name)
    assert {"conv.weight", "conv.bias"} <= seen


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory, digits_pack) -> Path:
    path = tmp_path_factory.mktemp("digits")
    with zipfile.ZipFile(digits_pack.path) as archive:
        archive.extractall(path)
    return path


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_plain_onnxruntime_loads_every_graph_of_the_folder(digits_folder, digits_pack):
    for name in graph_bytes(digits_pack):
        if "-int8" in name:  # its integers are made by the device
            continue
        session(digits_folder / name)
        onnx.checker.check_model(str(digits_folder / name))


@pytest.mark.parametrize("plan", ("bn", "head", "last-c25", "full"))
def test_plain_onnxruntime_trains_from_the_folder(digits_folder, digits_pack, plan):
    rng = np.random.default_rng(0)
    info, backbone, weights = digits_pack.plan(plan), digits_pack.backbone(plan), digits_pack.weights()
    x = rng.standard_normal((4, 3, 16, 16)).astype(np.float32)
    if backbone:
        (x,) = session(digits_folder / backbone.graph).run(None, {"x": x})
    batch = Batch(x, np.array([1, 2, 3, 4]), np.ones(4, np.float32))
    runner = session(digits_folder / f"train-{plan}.onnx")
    hyper = {"lr": 0.01, "gamma": -1.0, "step": 1.0, "momentum": 0.9, "bn_momentum": 0.1}
    feeds = {"x": batch.images, "labels": batch.labels, "sample_weight": batch.weights, **weights}
    feeds |= {n: np.array(v, np.float32) for n, v in hyper.items()}
    feeds |= {
        f"{s}::{n}": np.zeros_like(weights[n])
        for s in OPTIMIZER_STATE[digits_pack.manifest.optimizer]
        for n in info.trainable
    }
    feeds |= {f"index::{n}": np.arange(k) for n, k in info.channels.items()}
    feeds |= {f"steps::{n}": np.ones(k, np.float32) for n, k in info.channels.items()}
    names = [o.name for o in runner.get_outputs()]
    outputs = dict(zip(names, runner.run(names, {i.name: feeds[i.name] for i in runner.get_inputs()}), strict=True))
    trainer = OrtEngine(1).trainer(digits_pack, plan, weights)
    result = trainer.step(batch, Hyper(0.01))
    np.testing.assert_allclose(outputs["loss"], result.losses, rtol=1e-5, atol=1e-6)
    for name, value in trainer.weights().items():
        np.testing.assert_allclose(outputs[f"new::{name}"], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_unknown_plans_are_listed(place):
    with pytest.raises(UsageError, match=r"no plan last.*head, full"):
        open_pack(place).plan("last")
