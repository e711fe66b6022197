"""A pack with the weights of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save

from edge_sel.edge.outputs.model_files import write_weights
from edge_sel.edge.progress import extend_head
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.trial import try_pack
from edge_sel.errors import BadInputError, UsageError
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.reader import builtin_pack, open_pack
from edge_sel.pack.sign import sign_file
from edge_sel.pack.signatures import make_key, read_private_key
from edge_sel.pack.weights import pack_of_run

PACK = builtin_pack()
MODEL = PACK.manifest.model
IMAGES = np.random.default_rng(0).standard_normal((5, 3, *MODEL.image_size)).astype(np.float32)


def changed(*names: str, classes: int = 10):
    """The pack's weights with noise in these."""
    rng, weights = np.random.default_rng(1), extend_head(PACK.weights(), MODEL, classes)
    for name in names:
        weights[name] = weights[name] + 0.1 * rng.random(weights[name].shape).astype(np.float32)
    return weights


def written(tmp_path, weights, classes=MODEL.classes):
    (tmp_path / "run").mkdir()
    write_weights(tmp_path / "run" / "weights.safetensors", weights, classes)
    return tmp_path / "run"


def test_the_folder_of_a_run_or_its_file_is_read(tmp_path):
    weights = changed(*MODEL.head)
    run = written(tmp_path, weights)
    for path in (run, run / "weights.safetensors"):
        pack = pack_of_run(PACK, path)
        assert pack.manifest.model.classes == MODEL.classes and pack.begun_from == str(path)
        assert all((pack.weights()[name] == value).all() for name, value in weights.items())


def test_the_pack_computes_with_them_and_has_a_digest_of_its_own():
    weights = changed(*MODEL.head)
    pack = PACK.with_weights(weights, begun_from="run")
    assert pack.begun_from == "run" and pack.digest != PACK.digest
    assert pack.digest == PACK.with_weights(weights).digest
    assert pack.with_manifest(pack.manifest).begun_from == "run"
    expected = OrtEngine(1).predictor(PACK, weights)(IMAGES)
    np.testing.assert_array_equal(OrtEngine(1).predictor(pack, pack.weights())(IMAGES), expected)
    assert pack.manifest.files[WEIGHTS].bytes == len(pack.files[WEIGHTS])
    assert (PACK.weights()[MODEL.head[0]] != weights[MODEL.head[0]]).any(), "the pack itself stays as it was"


def test_classes_of_the_device_are_the_models_own_now():
    names = (*MODEL.classes, "ten", "eleven")
    pack = PACK.with_weights(changed(classes=12), names)
    assert pack.manifest.model.classes == names and pack.sums is not None
    assert pack.sums.prior.known.tolist() == [True] * 10 + [False] * 2
    assert pack.anchors is not None and len(pack.manifest.calibration.embarrassment) == 12
    grown = sum(value[:2].size for name, value in PACK.weights().items() if name in MODEL.head)
    assert pack.manifest.model.parameters == MODEL.parameters + grown


@pytest.mark.parametrize("what", ["a weight", "a statistic"])
def test_sums_of_features_that_are_no_longer_the_servers_go(what):
    body = [name for name in PACK.weights() if name not in MODEL.head]
    name = next(name for name in body if ("running_mean" in name) == (what == "a statistic"))
    assert PACK.with_weights(changed(name)).sums is None
    assert PACK.with_weights(changed(*MODEL.head)).sums is not None


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ["new.edgepack", "new"])
@pytest.mark.parametrize("classes", [10, 12])
def test_a_pack_that_is_saved_is_a_pack(name, classes, tmp_path):
    """Its graphs point to where each weight stands in the new file."""
    names = (*MODEL.classes, "ten", "eleven")[:classes]
    weights = changed(*PACK.weights(), classes=classes)
    PACK.with_weights(weights, names, "run").save(tmp_path / name)
    pack = open_pack(tmp_path / name)
    assert pack.manifest.model.classes == names and pack.signers is None and pack.begun_from is None
    assert pack.manifest.provenance["weights_of"]["begun_from"] == "run"
    expected = OrtEngine(1).predictor(PACK, weights)(IMAGES)
    np.testing.assert_array_equal(OrtEngine(1).predictor(pack, pack.weights())(IMAGES), expected)
    try_pack(pack)  # it has enough time and memory, too
    sign_file(tmp_path / name, make_private_key(tmp_path))


def test_a_pack_that_is_saved_as_it_is_computes_the_same_and_replaces_packs_only(tmp_path):
    PACK.save(tmp_path / "a.edgepack")
    same = open_pack(tmp_path / "a.edgepack")
    assert same.manifest.files[WEIGHTS] == PACK.manifest.files[WEIGHTS] and same.digest == PACK.digest
    PACK.save(tmp_path / "a.edgepack")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is not a pack"):
        PACK.save(tmp_path / "mine")


def make_private_key(tmp_path):
    make_key(tmp_path / "k.key.pem", tmp_path / "k.pub.pem")
    return read_private_key(tmp_path / "k.key.pem")


def without_one(weights):
    del weights[MODEL.head[0]]


def one_too_many(weights):
    weights["more"] = np.zeros(3, np.float32)


def not_a_number(weights):
    weights[MODEL.head[0]][0, 0] = np.nan


def float64(weights):
    weights[MODEL.head[0]] = weights[MODEL.head[0]].astype(np.float64)


def other_shape(weights):
    weights[MODEL.head[0]] = weights[MODEL.head[0]][:, 1:]


def one_class_more(weights):
    weights |= extend_head(weights, MODEL, 11)


@pytest.mark.parametrize("spoil", [without_one, one_too_many, not_a_number, float64, other_shape, one_class_more])
def test_weights_of_another_model_are_refused(spoil, tmp_path):
    weights = changed()
    spoil(weights)
    with pytest.raises(BadInputError, match=r"another model's.*/run"):
        pack_of_run(PACK, written(tmp_path, weights))


@pytest.mark.parametrize(
    "classes",
    [["a"], [*MODEL.classes, MODEL.classes[0]], [*MODEL.classes[::-1]], {"0": 1}, [*MODEL.classes, "\x1b[2J"], 3],
    ids=["fewer", "twice", "another order", "no list", "control characters", "a number"],
)  # fmt: skip
def test_classes_that_are_not_the_packs_and_more_are_refused(classes, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save(changed(), {"classes": json.dumps(classes)}))
    with pytest.raises(BadInputError, match="its classes are not") as caught:
        pack_of_run(PACK, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}"])
def test_what_is_no_file_of_weights_is_one_line(content, tmp_path):
    (tmp_path / "w").write_bytes(content)
    for path in (tmp_path / "w", tmp_path / "none", tmp_path):
        with pytest.raises(BadInputError) as caught:
            pack_of_run(PACK, path)
        assert "\n" not in str(caught.value)


def test_nested_class_names_are_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save(changed(), {"classes": 100_000 * "["}))
    with pytest.raises(BadInputError, match=r"cannot be read.*its classes are not names"):
        pack_of_run(PACK, path)
