"""``edge_sel.export``: what ``edge-sel export`` does, from Python."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import edge_sel
from edge_sel.api import rehearsal
from edge_sel.cli import export as command
from edge_sel.data.builtin import load_digits
from edge_sel.data.shifts import write_folder
from edge_sel.edge.outputs.model_files import write_model
from edge_sel.errors import BadInputError, DataError, GraphError, UsageError
from edge_sel.pack.reader import builtin_pack

HOW = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "plans": ("head",)}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """The built-in network as an ONNX file."""
    pack = builtin_pack()
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    write_model(path, pack, pack.weights(), pack.manifest.model.classes)
    return path


@pytest.fixture(scope="module")
def images():
    clean = load_digits("pretrain")
    return clean.subset(np.concatenate([np.flatnonzero(clean.labels == label)[:8] for label in range(10)]))


def test_an_onnx_file_becomes_a_pack_as_by_the_command(net, images, tmp_path):
    write_folder(images, tmp_path / "images")
    notes = []
    pack = edge_sel.export(
        net, str(tmp_path / "images"), out=tmp_path / "a.edgepack", rehearsals=0, note=notes.append, **HOW
    )
    assert isinstance(pack, edge_sel.Pack) and pack.manifest.plans.keys() == {"head"} and not pack.manifest.gains
    assert pack.manifest.model.classes == images.classes and pack.manifest.calibration.images == 80
    assert "calibrating" in notes and all("\n" not in line for line in notes)
    arguments = [net, "--data", tmp_path / "images", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--plans", "head",
                 "--rehearsals", 0, "--out", tmp_path / "b.edgepack"]  # fmt: skip
    result = CliRunner().invoke(command.command, [str(part) for part in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert edge_sel.open_pack(tmp_path / "b.edgepack").manifest.files == pack.manifest.files


def test_images_in_memory_and_class_names_in_their_own_order(net, images, tmp_path):
    turned = images.relabelled(9 - images.labels, images.classes[::-1])
    packs = [
        edge_sel.export(
            net, given, out=tmp_path / str(n), classes=images.classes, rehearsals=0, limit_per_class=5, **HOW
        )
        for n, given in enumerate((images, turned))
    ]
    assert packs[0].manifest.files == packs[1].manifest.files and packs[0].manifest.calibration.images == 50


def test_a_rehearsal_gives_the_table_of_gains(net, images, tmp_path, monkeypatch):
    fields = []
    monkeypatch.setattr(rehearsal, "rehearse", lambda pack, engine, pairs, note: fields.extend(pairs) or ())
    edge_sel.export(net, images, out=tmp_path / "pack", rehearsals=2, **HOW)
    assert len(fields) == 3 and all(not {*one.ids} & {*other.ids} for one, other in fields)


@pytest.mark.slow
def test_an_onnx_file_needs_no_torch(net, images, tmp_path):
    write_folder(images, tmp_path / "images")
    code = f"""
import sys
sys.modules["torch"] = None
import edge_sel
notes = []
pack = edge_sel.export({str(net)!r}, {str(tmp_path / "images")!r}, out={str(tmp_path / "pack")!r}, rehearsals=0, **{HOW!r})
print(sorted(pack.manifest.plans))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "['head']\n", result.stderr


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"optimizer": "adagrad"}, UsageError, "optimizer must be one of adam, sgd"),
        ({"seed": -1}, UsageError, "seed must be a whole number at least 0"),
        ({"limit_per_class": 0}, UsageError, "limit_per_class"),
        ({"rehearsals": 1.5}, UsageError, "rehearsals"),
        ({"gamma_percentile": float("nan")}, UsageError, "gamma_percentile"),
        ({"image_size": (16, 16, 3)}, UsageError, "image_size must be pixels"),
        ({"std": (0.2, 0.2, 0)}, UsageError, "std must be three numbers"),
        ({"mean": None}, UsageError, "normalisation of the images is unknown"),
        ({"plans": ("heads",)}, UsageError, "unknown plan: heads"),
        ({"plans": "head"}, UsageError, "plans must be a list of names"),
        ({"classes": ("1", "1")}, BadInputError, "class 1 occurs twice"),
        ({"classes": ("one", "two")}, UsageError, "10 logits, --classes names 2 classes"),
        ({"weights": "w.pth"}, UsageError, "--weights does not apply"),
        ({"source": "none.onnx"}, BadInputError, "no such ONNX file"),
        ({"source": 3}, BadInputError, "a source is a path, a name or a torch module"),
        ({"images": "nowhere"}, DataError, "nowhere"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_told_in_one_line(given, error, words, net, images, tmp_path):
    given = {"source": net, "images": images, "rehearsals": 0, **HOW} | given
    with pytest.raises(edge_sel.EdgeSelError, match=words) as caught:
        edge_sel.export(given.pop("source"), given.pop("images"), out=tmp_path / "pack", **given)
    assert isinstance(caught.value, error) and "\n" not in str(caught.value)
    assert not (tmp_path / "pack").exists()


def test_images_of_other_classes_or_sizes_are_refused(net, images, tmp_path):
    small = edge_sel.ImageSet.from_arrays(images.read(np.arange(80))[:, ::2, ::2].copy(), images.labels, images.classes)
    renamed = images.relabelled(images.labels, (*images.classes[:9], "nine"))
    for wrong, words in ((small, "the model takes 16 x 16"), (renamed, "nine"), (images.subset([]), "no images")):
        with pytest.raises(DataError, match=words):
            edge_sel.export(net, wrong, out=tmp_path / "pack", classes=images.classes, rehearsals=0, **HOW)


def test_a_torch_module_becomes_a_pack_and_stays_as_it_is(one_thread, images, tmp_path):
    import torch

    from edge_sel.models.registry import build

    torch.manual_seed(0)
    module = build("simple-cnn", 7, (16, 16)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UsageError, match="7 logits, the folder has 10 classes"):
        edge_sel.export(module, images, out=tmp_path / "pack", rehearsals=0, **HOW)
    pack = edge_sel.export(module, images, out=tmp_path / "pack", new_head=True, rehearsals=0, **HOW)
    assert pack.manifest.model.name == type(module).__name__ and pack.manifest.model.classes == images.classes
    assert module.training and all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert pack.manifest.calibration.accuracy > 0.3, "of heads that did not see the image"


def test_a_module_whose_head_cannot_be_replaced_is_refused(one_thread, images, tmp_path):
    from torch import nn

    head = nn.Sequential(nn.Conv2d(3, 7, 16), nn.Flatten())
    with pytest.raises(BadInputError, match="last linear layer does not make its logits"):
        edge_sel.export(head, images, out=tmp_path / "pack", new_head=True, rehearsals=0, **HOW)
    with pytest.raises((BadInputError, GraphError), match="fails on images of 8×8"):
        edge_sel.export(head, images, out=tmp_path / "pack", image_size=8, new_head=True, rehearsals=0, **HOW)
