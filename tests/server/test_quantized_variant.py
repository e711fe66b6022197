"""Which backbones an export gives a quantized variant, and that it ships none whose features differ."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from edge_sel import quantize
from edge_sel.data.dataset import normalise
from edge_sel.engines.ort import OrtEngine
from edge_sel.graphs import backbone as quantized_backbone
from edge_sel.pack.reader import open_pack
from edge_sel.quantize import MOST_ERROR, relative_error
from edge_sel.server import compile_plans
from edge_sel.server.export import export_pack
from edge_sel.server.source.torch_model import from_checkpoint
from tests.server.conftest import NOW, noise_images


def exported(warm, out, plans=("bn", "head", "last")):
    lines = []
    export_pack(from_checkpoint(warm), noise_images(), out, plans=plans, now=NOW, note=lines.append)
    return open_pack(out), [line for line in lines if "quantized variant" in line]


def test_an_export_makes_quantized_variants_and_notes_how_they_differ(warm, tmp_path):
    pack, lines = exported(warm, tmp_path / "pack")
    assert len(pack.manifest.backbones) == len(lines) == 2
    for (name, info), line in zip(pack.manifest.backbones.items(), lines, strict=True):
        assert info.int8.graph == f"backbone-{name}-int8.onnx" in pack.manifest.files
        assert 0 < (difference := info.int8.relative_error) < MOST_ERROR
        assert line == f"frozen backbone of {name}: the features of its quantized variant differ by {difference:.1%}"
        model = pack.manifest.model
        pixels = normalise(noise_images().read(np.arange(12)), model.mean, model.std)
        limits, weights = (float(pixels.min()), float(pixels.max())), pack.weights()
        plain, quantized = (OrtEngine(1).backbone(pack, name, weights, int8=given) for given in (None, limits))
        assert relative_error(quantized(pixels), plain(pixels)) == pytest.approx(difference, rel=1e-3)


def wrong_weights(conv, weights, input_scale):
    whole, scale, bias = FOLD(conv, weights, input_scale)
    return whole, scale * np.float32(1.2), bias


def wrong_bias(conv, weights, input_scale):
    whole, scale, bias = FOLD(conv, weights, input_scale)
    return whole, scale, bias + np.int32(np.abs(bias).max() + 5000)


def no_numbers(conv, weights, input_scale):
    whole, scale, bias = FOLD(conv, weights, input_scale)
    return whole, scale * np.float32("nan"), bias


FOLD = quantize.fold_batch_norm


@pytest.mark.sampled(2)
@pytest.mark.parametrize("wrong", [wrong_weights, wrong_bias, no_numbers])
def test_a_variant_that_differs_is_not_shipped(wrong, warm, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "fold_batch_norm", wrong)
    pack, lines = exported(warm, tmp_path / "pack")
    assert [info.int8 for info in pack.manifest.backbones.values()] == [None, None]
    assert all("no quantized variant: its features differ by" in line for line in lines) and len(lines) == 2
    assert not any("int8" in name for name in pack.manifest.files)


def test_a_variant_whose_features_are_no_numbers_is_not_shipped(warm, tmp_path, monkeypatch):
    monkeypatch.setattr(compile_plans, "relative_error", lambda found, expected: float("nan"))
    pack, _ = exported(warm, tmp_path / "pack")
    assert [info.int8 for info in pack.manifest.backbones.values()] == [None, None]


def test_ranges_leave_the_extremes_of_few_images_out(monkeypatch):
    """Of a hundred images ten have a point far above and ten others one far below."""
    monkeypatch.setattr(compile_plans, "WITHIN", 0.85)
    values = np.tile(np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2), (100, 1, 1, 1))
    values[3:13, 0, 0, 0], values[53:63, 2, 1, 1] = -9, 9
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Identity", ["a"], ["features"])]
    ends = [helper.make_tensor_value_info(name, 1, ["batch", 3, 2, 2]) for name in ("x", "features")]
    graph = helper.make_graph(nodes, "negative", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    ranges, features = compile_plans._measure(model, {}, "x", ["a"], values)
    assert ranges == {"a": (-1.0, 1.0)}
    np.testing.assert_array_equal(features, -values)


def test_a_variant_whose_ranges_cut_off_too_much_is_not_shipped(warm, tmp_path, monkeypatch):
    monkeypatch.setattr(
        compile_plans, "WITHIN", 0.0
    )  # of each the least of the greatest values, and the other way round
    whole = quantized_backbone.grid_of
    monkeypatch.setattr(quantized_backbone, "grid_of", lambda limits: whole((limits[0] / 3, limits[1] / 3)))
    pack, _ = exported(warm, tmp_path / "pack")
    assert [info.int8 for info in pack.manifest.backbones.values()] == [None, None]


def test_one_that_has_no_quantized_form_is_noted(warm, tmp_path, monkeypatch):
    monkeypatch.setattr(
        quantized_backbone, "SUPPORTED", tuple(op for op in quantized_backbone.SUPPORTED if op != "Add")
    )
    pack, lines = exported(warm, tmp_path / "pack", plans=("head",))
    assert len(lines) == 1 and pack.manifest.backbones["head"].int8 is None
    assert lines[0].startswith("frozen backbone of head: no quantized variant: operator Add is not supported")
