"""A classifier that is an ONNX file alone: whatever its exporter did to it, it becomes a pack that is right."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from edge_sel.data.dataset import normalise
from edge_sel.data.shifts import write_folder
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import GraphError, UsageError
from edge_sel.graphs.plans import head_names, running_statistics
from edge_sel.graphs.rules.registry import RULES
from edge_sel.graphs.train import compile_eval
from edge_sel.pack.reader import open_pack
from edge_sel.server import derivative
from edge_sel.server.export import export_pack
from edge_sel.server.source.onnx_model import read_onnx
from edge_sel.server.source.open import Asked, open_source
from edge_sel.server.source.unfold import unfold
from tests.server import onnx_files as files
from tests.server.conftest import CLASSES, NOW, noise_images
from tests.server.test_export import bent, relu_that_forgets_its_mask, wrong_on_one_element

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
ASKED = Asked(classes=CLASSES, mean=MEAN, std=STD)


here_alone = pytest.mark.usefixtures("read_here_alone")


def plain(path, **options):
    return files.torch_file(path, files.settled(), **options)


FORMS = {
    "plain": plain,
    "of operator set 9": lambda path: plain(path, opset=9),
    "of operator set 13": lambda path: plain(path, opset=13),
    "folded, of a fixed batch": lambda path: plain(path, folded=True, dynamic=False),
    "softmax": lambda path: files.changed(plain(path), files.with_softmax),
    "two outputs": lambda path: files.changed(plain(path), files.with_features_too),
    "channels last": lambda path: files.changed(plain(path), files.channels_last),
    "channels last, scaled": lambda path: files.changed(plain(path), files.scaled_inside),
    "MatMul and Add": lambda path: files.changed(plain(path), files.product_and_sum),
    "a convolution for a head": lambda path: files.torch_file(path, files.settled(files.ConvHead)),
    "the same, turned": lambda path: files.changed(
        files.torch_file(path, files.settled(files.ConvHead)), files.turned_head
    ),
    "a head without bias": lambda path: files.torch_file(path, files.settled(files.NoBias)),
    "as Paddle writes": lambda path: files.changed(plain(path, opset=11), files.as_paddle_writes),
    "Identity before softmax": lambda path: files.changed(plain(path), files.identity_before_softmax),
    "names of a step": lambda path: files.changed(plain(path, folded=True), files.named_as_a_step_names),
    "normalised behind ReLU": lambda path: files.changed(plain(path, folded=True), files.normalised_behind_relu),
    "weights as inputs": lambda path: files.changed(plain(path), files.weights_as_inputs),
    "equal biases stored once": lambda path: files.changed(plain(path), files.equal_biases_once),
}


def of_file(path, pixels):
    """What onnxruntime makes of the file as it is: logits, or log-probabilities of its probabilities."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    given = pixels if image.shape[1] == 3 else pixels.transpose(0, 2, 3, 1)
    return np.concatenate([session.run(None, {image.name: row[None]})[0] for row in given]), session.get_outputs()[
        0
    ].name


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_a_file_computes_the_same_and_has_a_linear_head(form, tmp_path):
    path = FORMS[form](tmp_path / "net.onnx")
    forward, size = read_onnx(path, None, len(CLASSES))
    assert size == (files.SIZE, files.SIZE)
    pixels = np.random.default_rng(1).standard_normal((5, 3, *size)).astype(np.float32)
    session = OrtEngine(1).session(compile_eval(forward).SerializeToString(), {})
    (found,) = session.run(["logits"], {"x": pixels, **{n: forward.initializers[n] for n in head_names(forward)}})
    expected, name = of_file(path, pixels)
    if name == "probabilities":
        shift = np.log(expected) - found
        np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-4)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    weight, bias = (forward.initializers[name] for name in head_names(forward))
    assert weight.shape == (3, 12) and bias.shape == (3,)
    assert all(re.fullmatch(r"\w+(\.\w+)+", name) for name in (*forward.parameters, *running_statistics(forward)))
    biases = [node.inputs[2] for node in forward.nodes if node.op == "Conv" and len(node.inputs) == 3]
    assert len(set(biases)) == len(biases), "a layer has no weight of another"


@here_alone
def test_a_product_and_a_sum_behind_relu_become_a_normalisation_that_computes_the_same(tmp_path):
    path = FORMS["normalised behind ReLU"](tmp_path / "net.onnx")
    source = open_source(str(path), ASKED)
    assert source.folded
    images = noise_images(64)
    unfolded = unfold(source, images, np.random.default_rng(0))
    before, after = (
        Counter(node.op for node in part.forward.nodes if not node.name.startswith("deep_head"))
        for part in (source, unfolded)
    )
    assert after["BatchNormalization"] == 4, "the stem's behind its ReLU, and three convolutions'"
    assert (after["Mul"], after["Add"]) == (before["Mul"] - 1, before["Add"] - 1)
    pixels = normalise(images.read(np.arange(8)), MEAN, STD)
    logits = []
    for part in (source, unfolded):
        session = OrtEngine(1).session(compile_eval(part.forward).SerializeToString(), {})
        head = {name: part.forward.initializers[name] for name in head_names(part.forward)}
        logits.append(session.run(["logits"], {"x": pixels, **head})[0])
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-5)


@here_alone
def test_constants_that_the_exporter_did_not_store_are_told(tmp_path):
    def lose(model):
        model.graph.input.append(
            helper.make_tensor_value_info("normalization/Sub/y:0", TensorProto.FLOAT, [1, 1, 1, 3])
        )

    path = files.changed(plain(tmp_path / "net.onnx"), lose)
    with pytest.raises(GraphError, match=r"has 2: .*Sub/y:0 \(the others are constants .* tf2onnx.convert"):
        open_source(str(path), ASKED)


@here_alone
@pytest.mark.sampled(12)
@pytest.mark.parametrize(
    "form",
    ("folded, of a fixed batch", "channels last, scaled", "of operator set 9", "as Paddle writes", "names of a step",
     "normalised behind ReLU"),
)  # fmt: skip
@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
def test_a_pack_of_a_file_trains_as_torch_does(form, optimizer, one_thread, tmp_path):
    """Torch is not asked by the export; here it is, of the same network."""
    path = FORMS[form](tmp_path / "net.onnx")
    source = open_source(str(path), ASKED)
    manifest = export_pack(source, noise_images(24), tmp_path / "pack", optimizer=optimizer, now=NOW)
    assert {"head", "last", "full", "full-c25"} <= manifest.plans.keys()
    assert "bn" in manifest.plans, "also where it was folded"
    pack = open_pack(tmp_path / "pack")
    assert {"ridge", "closed_form"} <= set(pack.plan_names)
    limits = manifest.parity["error_of_reference"]
    assert all(error < 1e-3 for error in limits.values())


@here_alone
@pytest.mark.sampled(10)
@pytest.mark.parametrize(
    ("op", "rule"),
    (
        ("Relu", relu_that_forgets_its_mask), ("Conv", bent("Conv", 0)), ("Conv", bent("Conv", 1)),
        ("Conv", wrong_on_one_element), ("BatchNormalization", bent("BatchNormalization", 0)),
        ("BatchNormalization", bent("BatchNormalization", 2)), ("Gemm", bent("Gemm", 1)), ("Gemm", bent("Gemm", 0)),
        ("HardSwish", bent("HardSwish", 0, 1.01)), ("Add", bent("Add", 1)),
    ),
)  # fmt: skip
def test_a_wrong_rule_is_refused_without_torch(op, rule, tmp_path, monkeypatch):
    source = open_source(str(plain(tmp_path / "net.onnx")), ASKED)
    monkeypatch.setitem(RULES, op, rule)
    with pytest.raises(GraphError, match="differs from a numerical derivative") as error:
        export_pack(source, noise_images(24), tmp_path / "pack", plans=("head", "full"), now=NOW)
    assert op in error.value.where
    assert not (tmp_path / "pack").exists()


@here_alone
@pytest.mark.parametrize("nudge", [derivative.NUDGE, pytest.param(0.0, marks=pytest.mark.slow)])
def test_a_channel_that_is_always_zero_refuses_no_right_graph(nudge, one_thread, tmp_path, monkeypatch):
    """It stands on the kink of a ReLU: a derivative to both sides is half of that to one."""
    model = files.settled()
    with torch.no_grad():
        for values in (model.stem.weight, model.norm.running_mean, model.norm.bias):
            values[:3] = 0
    monkeypatch.setattr(derivative, "NUDGE", nudge)
    source = open_source(str(files.torch_file(tmp_path / "net.onnx", model)), ASKED)
    with contextlib.nullcontext() if nudge else pytest.raises(GraphError, match="numerical derivative"):
        export_pack(source, noise_images(), tmp_path / "pack", plans=("bn", "full"), now=NOW)


@here_alone
def test_a_new_head_is_fitted_to_the_folder(one_thread, tmp_path):
    """Of four classes, where the file has three."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    pixels = rng.integers(0, 60, (80, 16, 16, 3))
    pixels[np.arange(80), :, :8, labels % 3] += 120
    pixels[labels == 3] += 60
    from edge_sel.data.dataset import ImageSet

    images = ImageSet.from_arrays(pixels.astype(np.uint8), labels, ("a", "b", "c", "d"))
    path = plain(tmp_path / "net.onnx")
    wanted = Asked(folders=images.classes, mean=MEAN, std=STD)
    with pytest.raises(UsageError, match="the model has 3 logits, the folder has 4 classes"):
        open_source(str(path), wanted)
    source = open_source(str(path), Asked(folders=images.classes, mean=MEAN, std=STD, new_head=True))
    manifest = export_pack(source, images, tmp_path / "pack", plans=("bn", "head"), now=NOW)
    assert manifest.model.classes == images.classes and manifest.calibration.accuracy > 0.7
    pack = open_pack(tmp_path / "pack")
    assert pack.weights()[manifest.model.head[0]].shape == (4, 12)


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "onnxscript", "timm"):
    sys.modules[name] = None
from importlib import util
find = util.find_spec
util.find_spec = lambda name, *rest: None if name in sys.modules and sys.modules[name] is None else find(name, *rest)
sys.argv = ["edge-sel", *sys.argv[1:]]
from edge_sel.__main__ import main
main()
"""


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    process = [sys.executable, "-c", WITHOUT_TORCH, *(str(part) for part in arguments)]
    return subprocess.run(process, capture_output=True, text=True, timeout=250)


def test_from_a_file_to_a_fine_tuned_model_without_torch(tmp_path):
    path, data = plain(tmp_path / "net.onnx"), tmp_path / "data"
    write_folder(noise_images(60), data)
    dry = without_torch("export", path, "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    result = json.loads(dry.stdout)
    assert {plan["name"] for plan in result["plans"] if plan["trainable"]} >= {"bn", "head", "full"}
    assert all(plan["flops"] > 0 and plan["activation_bytes"] > 0 for plan in result["plans"] if plan["name"] == "full")
    given = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3", "--plans", "bn,head", "--out", tmp_path / "m.edgepack")
    made = without_torch("export", path, "--data", data, *given)
    assert made.returncode == 0 and "rehearsals: simulated cameras need torch" in made.stderr, made.stderr
    run = without_torch("finetune", tmp_path / "m.edgepack", "--data", data, "--out", tmp_path / "run", "--json")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "model.onnx").is_file()


def test_a_checkpoint_without_torch_says_what_is_missing(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"")
    result = without_torch("export", tmp_path / "w.safetensors", "--dry-run")
    assert result.returncode == 3 and "needs torch and onnxscript" in result.stderr


@here_alone
def test_of_torch_the_step_is_the_same(one_thread, tmp_path):
    """The gradient of the file's first convolution is that of the torch model it was made of."""
    model = files.settled()
    source = open_source(str(files.torch_file(tmp_path / "net.onnx", model)), ASKED)
    export_pack(source, noise_images(24), tmp_path / "pack", plans=("full",), now=NOW)
    pack = open_pack(tmp_path / "pack")
    from edge_sel.engines.base import Batch, Hyper

    x = np.random.default_rng(2).standard_normal((6, 3, 16, 16)).astype(np.float32)
    labels = np.arange(6) % 3
    trainer = OrtEngine(1).trainer(pack, "full", pack.weights())
    trainer.step(Batch(x, labels, np.ones(6, np.float32)), Hyper(1e-3))
    loss = torch.nn.functional.cross_entropy(model.train()(torch.from_numpy(x)), torch.from_numpy(labels))
    (expected,) = torch.autograd.grad(loss, [model.stem.weight])
    np.testing.assert_allclose(trainer.state()["momentum::stem.weight"], expected.numpy(), rtol=1e-3, atol=1e-5)
