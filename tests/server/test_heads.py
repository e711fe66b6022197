"""Heads that are not one linear layer: from a user's file to a model with one more class."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner

from edge_sel.cli.finetune import command
from edge_sel.data.dataset import ImageSet
from edge_sel.data.shifts import write_folder
from edge_sel.pack.reader import open_pack
from edge_sel.server.export import export_pack
from edge_sel.server.source.open import Asked, open_source
from tests.graphs.nets import PooledHead, TwoHeads
from tests.server.conftest import CLASSES, NOW

MORE = (*CLASSES, "more")


def coloured(images: int, classes: tuple[str, ...]) -> ImageSet:
    """Every class has a brightness of its own: easy to learn."""
    rng, labels = np.random.default_rng(0), np.arange(images) % len(classes)
    bright = 40 + 45 * labels
    pixels = np.clip(rng.normal(bright[:, None, None, None], 40, (images, 16, 16, 3)), 0, 255).astype(np.uint8)
    return ImageSet.from_arrays(pixels, labels, classes)


def network_input(images: ImageSet) -> np.ndarray:
    pixels = images.read(np.arange(len(images))).astype(np.float32).transpose(0, 3, 1, 2) / 255
    return (pixels - 0.5) / 0.2


@pytest.fixture(params=(PooledHead, TwoHeads), scope="module")
def pack(request, one_thread, tmp_path_factory):
    """Trained for three classes, by its owner."""
    here, net = tmp_path_factory.mktemp(request.param.__name__), request.param
    torch.manual_seed(0)
    model, images = net(3), coloured(96, CLASSES)
    if net is PooledHead:
        model.classifier.bias.data += 1  # behind ReLU a class that begins below zero would never learn
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    x, y = torch.from_numpy(network_input(images)), torch.from_numpy(images.labels)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    torch.save(model.state_dict(), here / "weights.pth")
    (here / "net.py").write_text(f"from tests.graphs.nets import {net.__name__} as make_model\n")
    asked = Asked(image_size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3, folders=CLASSES, weights=here / "weights.pth")
    source = open_source(f"{here / 'net.py'}:make_model", asked)
    export_pack(source, images, here / "pack", plans=("head", "last", "full"), now=NOW)
    return here / "pack"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("plan", ("head", "last"))
def test_a_class_is_added_and_learnt(plan, pack, tmp_path):
    write_folder(coloured(200, MORE), tmp_path / "data")
    given = [
        "--plan",
        plan,
        "--new-classes",
        "extend",
        "--epochs",
        "30",
        "--learning-rate",
        "0.002",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    made = CliRunner().invoke(command, [str(pack), "--data", str(tmp_path / "data"), *given])
    assert made.exit_code == 0, made.output
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["shipped"] and run["accuracy"]["after"] > run["accuracy"]["before"]
    session = ort.InferenceSession(str(tmp_path / "run" / "model.onnx"))
    (logits,) = session.run(None, {session.get_inputs()[0].name: network_input(coloured(40, MORE))})
    right = logits.argmax(1) == np.arange(40) % 4
    assert logits.shape == (40, 4) and right.mean() > 0.7 and right[3::4].mean() > 0.5, "the new class too"
    assert len(open_pack(pack).manifest.model.classes) == 3
