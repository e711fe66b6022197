"""Published classifiers, one by one; in an environment with torchvision and timm (the command is in docs/models.md)."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ZOO = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "model_zoo.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO["MODELS"])
def test_a_published_classifier_becomes_a_pack_with_every_plan_that_makes_sense(name, tmp_path):
    pytest.importorskip(name.partition(":")[0], exc_type=(ImportError, RuntimeError))
    found = ZOO["make_pack"](name, ZOO["MODELS"][name], tmp_path / "pack")
    assert found["plans"].keys() >= {"head", "affine", "last", "full"}, found["reason"]
    assert "bn" in found["plans"] or "plan bn finds nothing to change" in found["reason"]
    assert found["new_head"] == "yes"
    assert found["closed_form"] == ("ridge, closed_form" if "bn" in found["plans"] else "ridge")
