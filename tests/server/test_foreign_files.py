"""ONNX files that Keras 3, tf2onnx and Paddle wrote, in an environment that has some (tools/foreign_files.py makes them).

What each showed has a stand-in of a few layers in the default suite: ``onnx_files.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edge_sel.data.dataset import ImageSet
from edge_sel.errors import GraphError
from edge_sel.pack.reader import open_pack
from edge_sel.server.export import export_pack
from edge_sel.server.source.open import Asked, open_source
from tests.server.conftest import NOW

FOLDER = os.environ.get("EDGE_SEL_FOREIGN", "")
FILES = sorted(Path(FOLDER).glob("**/*.onnx")) if FOLDER else []
LOST = "efficientnet_b0-keras"
"""Of its Normalization layer Keras' own export stores no constants."""
PADDLE = (48, 192)
"""Pixels of PaddleOCR's classifier of text direction, whose file leaves them open."""


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason="EDGE_SEL_FOREIGN names no folder with ONNX files")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_becomes_a_pack_with_every_plan_that_makes_sense(path, tmp_path):
    asked = Asked(mean=(0.5,) * 3, std=(0.25,) * 3, folders=("ant", "bee", "cat"), new_head=True,
                  image_size=PADDLE if "ppocr" in path.stem else None)  # fmt: skip
    if path.stem == LOST:
        with pytest.raises(GraphError, match=r"tf2onnx\.convert --saved-model"):
            open_source(str(path), asked)
        return
    source = open_source(str(path), asked)
    rng = np.random.default_rng(0)
    height, width = source.info.image_size
    # Coarse squares: of noise alone a network with random weights makes the same of every image.
    coarse = rng.integers(0, 256, (24, 6, 6, 3)).repeat(-(-height // 6), 1).repeat(-(-width // 6), 2)
    pixels = np.clip(coarse[:, :height, :width] + rng.normal(0, 20, (24, height, width, 3)), 0, 255).astype(np.uint8)
    images = ImageSet.from_arrays(pixels, np.arange(24) % 3, source.info.classes)
    made = export_pack(source, images, tmp_path / "pack", now=NOW)
    assert made.plans.keys() >= {"bn", "head", "affine", "last", "first", "full", "full-c25"}
    assert {"ridge", "closed_form"} <= {*open_pack(tmp_path / "pack").plan_names}
