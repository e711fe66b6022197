"""A teacher of timm, from a hub cache without a network. The weights in it are random: none can be downloaded here.

Each command is a process of its own, because the hub reads its environment once, when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from edge_sel.errors import UsageError
from edge_sel.server.teacher import open_teacher
from tests.server.conftest import colours

timm = pytest.importorskip("timm")
MODEL, REVISION = "test_resnet.r160_in1k", "0" * 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Noisy squares, a folder for each colour."""
    root, images = tmp_path_factory.mktemp("data"), colours(60)
    for row, (pixels, label) in enumerate(zip(images.read(np.arange(60)), images.labels, strict=True)):
        (root / images.classes[label]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / images.classes[label] / f"{row}.png")
    return root


@pytest.fixture(scope="module")
def hub(one_thread, tmp_path_factory):
    """A hub cache, as if the weights had been downloaded."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("hub")
    folder = root / "hub" / f"models--timm--{MODEL}"
    (folder / "snapshots" / REVISION).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    save_file(timm.create_model(MODEL).state_dict(), folder / "snapshots" / REVISION / "model.safetensors")
    return root


def pretrained(data, hub, out, *words):
    """Exit status, stdout and stderr."""
    command = ["pretrain", "--data", data, "--out", out, "--image-size", "12", "--model", "resnet-c-small"]
    command += ["--epochs", "1", "--validation", "0.2", "--batch-size", "16", "--device", "cpu", "--json"]
    surroundings = os.environ | {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "edge_sel", *map(str, command), *words],
        env=surroundings, capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    return ran.returncode, ran.stdout, ran.stderr


def test_a_new_head_on_a_backbone_of_timm_knows_the_classes_of_the_images(data, hub, tmp_path):
    code, out, err = pretrained(data, hub, tmp_path / "w.safetensors", "--teacher", f"timm:{MODEL}")
    assert code == 0, err
    result = json.loads(out)
    assert result["teacher"] == f"timm:{MODEL}" and result["teacher_accuracy"] > 0.9
    assert f"teacher timm:{MODEL}: accuracy" in err and (tmp_path / "w.safetensors").exists()


def test_weights_that_cannot_be_had_are_one_line(data, tmp_path):
    code, _, err = pretrained(data, tmp_path / "empty", tmp_path / "w.safetensors", "--teacher", f"timm:{MODEL}")
    assert code == 3 and "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("edge-sel: no pretrained weights of timm:") and "load them once with a network" in last
    assert not (tmp_path / "w.safetensors").exists()


def test_a_model_that_timm_has_not():
    with pytest.raises(UsageError, match="timm has no such model: resnet-z"):
        open_teacher("timm:resnet-z", colours(), np.arange(60), torch.device("cpu"))
