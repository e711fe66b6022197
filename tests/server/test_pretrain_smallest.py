"""The smallest and strangest that pretraining may be given."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from edge_sel.cli.main import main


@pytest.fixture
def pretrain(tmp_path, monkeypatch, capfd):
    for number in range(16):
        (tmp_path / "data" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / str(number % 2) / f"{number}.png")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        words = [
            "pretrain",
            "--data",
            "data",
            "--out",
            "w.safetensors",
            "--image-size",
            "8",
            "--model",
            "resnet-c-small",
        ]
        monkeypatch.setattr("sys.argv", ["edge-sel", *words, *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capfd.readouterr()

    return call


@pytest.mark.parametrize("epochs", ["1", "2", "3", "4"])
def test_a_few_steps(epochs, pretrain):
    assert pretrain("--epochs", epochs)[0] == 0


def test_without_a_validation_share(pretrain):
    code, out, _ = pretrain("--epochs", "1", "--validation", "0", "--json")
    assert code == 0 and json.loads(out)["validation_accuracy"] is None and "NaN" not in out


@pytest.mark.parametrize(
    "words",
    [
        ["--crop-padding", "8"], ["--device", "abacus"], ["--lr", "1e300"], ["--lr", "nan"], ["--seed", "9" * 400],
        ["--data", ""], ["--teacher", ""], ["--camera-strength", "nan"], ["--max-pixels", "9" * 400], ["--out", ""],
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(words, pretrain):
    code, _, err = pretrain("--epochs", "1", *words)
    assert code == 2 and "Traceback" not in err and err.splitlines()[-1].startswith("edge-sel: ")


@pytest.mark.parametrize(("teacher", "status"), [("none.edgepack", 4), ("none.safetensors", 4), ("data", 4)])
def test_a_teacher_that_is_none_is_one_line(teacher, status, pretrain, tmp_path):
    code, _, err = pretrain("--epochs", "1", "--teacher", teacher)
    assert code == status and "Traceback" not in err and err.splitlines()[-1].startswith("edge-sel: ")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_one_line_tells_how_to_install_it(pretrain):
    code, _, err = pretrain("--epochs", "1", "--teacher", "timm:resnet18")
    assert code == 3 and "timm cannot be imported" in err and "pip install 'edge-sel[timm]'" in err.splitlines()[-1]


def test_a_teacher_and_what_it_costs_are_told(pretrain, tmp_path):
    assert pretrain("--epochs", "1", "--model", "fast-net-small", "--image-size", "16")[0] == 0
    (tmp_path / "w.safetensors").rename(tmp_path / "teacher.safetensors")
    code, out, err = pretrain("--epochs", "1", "--teacher", "teacher.safetensors", "--json")
    assert code == 0 and json.loads(out)["teacher"] == "fast-net-small (teacher.safetensors)"
    assert 0 <= json.loads(out)["teacher_accuracy"] <= 1
    assert "teacher fast-net-small (teacher.safetensors): accuracy" in err and ", teacher 0 s" in err
