"""A pack with the weights of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save

from edge_sel.edge.head import extend_head
from edge_sel.edge.outputs.model_files import write_weights
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import BadInputError
from edge_sel.pack.builtin import builtin_pack
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.trained import Trained, read_trained, with_weights

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
        trained = read_trained(path, PACK)
        assert trained.classes == MODEL.classes and trained.path == path
        assert all((trained.weights[name] == value).all() for name, value in weights.items())


def test_the_pack_computes_with_them_and_has_a_digest_of_its_own(tmp_path):
    weights = changed(*MODEL.head)
    pack = with_weights(PACK, Trained(weights, MODEL.classes, tmp_path))
    assert pack.begun_from == tmp_path and pack.digest != PACK.digest
    assert pack.digest == with_weights(PACK, Trained(weights, MODEL.classes, tmp_path)).digest
    assert pack.with_manifest(pack.manifest).begun_from == tmp_path
    expected = OrtEngine(1).predictor(PACK, weights)(IMAGES)
    np.testing.assert_array_equal(OrtEngine(1).predictor(pack, pack.weights())(IMAGES), expected)
    assert pack.manifest.files[WEIGHTS].bytes == len(pack.files[WEIGHTS])
    assert (PACK.weights()[MODEL.head[0]] != weights[MODEL.head[0]]).any(), "the pack itself stays as it was"


def test_classes_of_the_device_are_the_models_own_now(tmp_path):
    names = (*MODEL.classes, "ten", "eleven")
    pack = with_weights(PACK, Trained(changed(classes=12), names, tmp_path))
    assert pack.manifest.model.classes == names and pack.sums is not None
    assert pack.sums.prior.known.tolist() == [True] * 10 + [False] * 2
    assert pack.anchors is not None and len(pack.manifest.calibration.embarrassment) == 12
    grown = sum(value[:2].size for name, value in PACK.weights().items() if name in MODEL.head)
    assert pack.manifest.model.parameters == MODEL.parameters + grown


@pytest.mark.parametrize("what", ["a weight", "a statistic"])
def test_sums_of_features_that_are_no_longer_the_servers_go(what, tmp_path):
    body = [name for name in PACK.weights() if name not in MODEL.head]
    name = next(name for name in body if ("running_mean" in name) == (what == "a statistic"))
    assert with_weights(PACK, Trained(changed(name), MODEL.classes, tmp_path)).sums is None
    assert with_weights(PACK, Trained(changed(*MODEL.head), MODEL.classes, tmp_path)).sums is not None


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
    with pytest.raises(BadInputError, match=r"another model's.*weights\.safetensors"):
        read_trained(written(tmp_path, weights), PACK)


@pytest.mark.parametrize(
    "classes",
    [["a"], [*MODEL.classes, MODEL.classes[0]], [*MODEL.classes[::-1]], {"0": 1}, [*MODEL.classes, "\x1b[2J"], 3],
    ids=["fewer", "twice", "another order", "no list", "control characters", "a number"],
)  # fmt: skip
def test_classes_that_are_not_the_packs_and_more_are_refused(classes, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save(changed(), {"classes": json.dumps(classes)}))
    with pytest.raises(BadInputError, match="its classes are not") as caught:
        read_trained(path, PACK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}"])
def test_what_is_no_file_of_weights_is_one_line(content, tmp_path):
    (tmp_path / "w").write_bytes(content)
    for path in (tmp_path / "w", tmp_path / "none", tmp_path):
        with pytest.raises(BadInputError) as caught:
            read_trained(path, PACK)
        assert "\n" not in str(caught.value)


def test_nested_class_names_are_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save(changed(), {"classes": 100_000 * "["}))
    with pytest.raises(BadInputError, match=r"cannot be read.*its classes are not names"):
        read_trained(path, PACK)
