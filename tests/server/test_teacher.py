"""What a teacher says, and what a student learns from it."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import BadInputError, UsageError
from edge_sel.pack.manifest import MANIFEST
from edge_sel.pack.manifest_json import to_json
from edge_sel.server import warmup
from edge_sel.server.batches import Batches, BatchOptions
from edge_sel.server.pretrain import PretrainOptions, pretrain, train_epoch
from edge_sel.server.teacher import LABEL_WEIGHT, TEMPERATURE, Teacher, distillation_loss, open_teacher
from tests.server.conftest import CLASSES, colours, noise_images

CPU = torch.device("cpu")
OPTIONS = PretrainOptions(
    model="resnet-c-small", epochs=2, batch_size=8, learning_rate=0.05, crop_padding=1, validation_fraction=0.2,
    device="cpu", precision="fp32", seed=3, robust=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def learned(one_thread, tmp_path_factory):
    """A checkpoint that tells the colours apart."""
    path = tmp_path_factory.mktemp("private") / "colours.safetensors"
    pretrain(colours(), path, OPTIONS)
    return path


@given(st.integers(1, 9), st.integers(2, 12), st.integers(0, 10**6))
def test_the_loss_is_its_formula(count, classes, seed):
    rng = np.random.default_rng(seed)
    logits, taught = rng.normal(size=(2, count, classes)) * 5
    labels = rng.integers(0, classes, count)

    def log_softmax(values):
        return values - np.log(np.exp(values).sum(1, keepdims=True))

    wanted, have = (log_softmax(values / TEMPERATURE) for values in (taught, logits))
    soft = (np.exp(wanted) * (wanted - have)).sum(1).mean()
    hard = -log_softmax(logits)[np.arange(count), labels].mean()
    expected = LABEL_WEIGHT * hard + (1 - LABEL_WEIGHT) * TEMPERATURE**2 * soft
    loss = float(distillation_loss(*map(torch.from_numpy, (logits, labels, taught))))
    assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5) and loss >= LABEL_WEIGHT * hard - 1e-5


def test_a_student_that_says_what_the_teacher_says_learns_from_the_labels_alone():
    taught = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    logits = (taught + 3).requires_grad_()  # a constant changes no probability
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    (gradient,) = torch.autograd.grad(distillation_loss(logits, labels, taught, 0.1), logits)
    (hard,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, label_smoothing=0.1), logits)
    assert torch.allclose(gradient, LABEL_WEIGHT * hard, atol=1e-6)


def test_a_student_believes_the_teacher_rather_than_wrong_labels(learned, tmp_path, one_thread):
    right = colours()
    wrong = ImageSet.from_arrays(right.read(np.arange(60)), (right.labels + 1) % 3, right.classes)
    images = normalise(right.read(np.arange(60)), (0.5,) * 3, (0.2,) * 3)
    assert images.shape == (60, 3, 12, 12)
    for teacher, labels in ((None, wrong.labels), (str(learned), right.labels)):
        info = pretrain(wrong, tmp_path / "warm.safetensors", replace(OPTIONS, epochs=4, teacher=teacher))
        model, _ = warmup.load(tmp_path / "warm.safetensors")
        with torch.no_grad():
            said = model(torch.from_numpy(normalise(right.read(np.arange(60)), info.mean, info.std))).argmax(1).numpy()
        assert (said == labels).mean() > 0.9, teacher
    assert info.training["teacher_accuracy"] == 0.0, "judged by the labels that were held out, which are wrong"


def test_a_teacher_changes_neither_the_initial_weights_nor_the_order_of_the_images(learned, tmp_path, one_thread):
    """Nothing is learned at this rate, but for the running statistics, which depend on both."""
    options = replace(OPTIONS, epochs=1, learning_rate=1e-12, weight_decay=0.0, robust=True, batch_size=48)
    states = []
    for teacher in (None, str(learned)):
        pretrain(colours(), tmp_path / "warm.safetensors", replace(options, teacher=teacher))
        states.append(warmup.load(tmp_path / "warm.safetensors")[0].state_dict())
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], rtol=1e-5, atol=1e-6), name


class Recorder(nn.Module):
    """A model that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[torch.Tensor] = []
        self.head = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shown.append(x.detach().clone())
        return self.head(x.mean((2, 3)))


def test_the_teacher_sees_the_crop_of_the_student_through_no_camera():
    images, views = colours(), BatchOptions(batch_size=60, crop_padding=2, camera_share=0.6)
    loader = Batches(images, (0.5,) * 3, (0.25,) * 3, CPU)
    student, recorder = Recorder(), Recorder()
    teacher = Teacher("recorder", recorder, images.size, loader, "fp32")
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    epoch = loader.shuffled(np.arange(60), views, torch.Generator().manual_seed(0))
    train_epoch(student.train(), epoch, optimizer, schedule, OPTIONS, teacher)
    (seen_by_teacher,), seen = recorder.shown, torch.cat(student.shown)
    same = torch.isclose(seen, seen_by_teacher, atol=1e-5).flatten(1).all(1)
    assert same[12:36].all() and same[:12].sum() <= 3 and same[36:].sum() <= 3, "36 of 60 were taken by cameras"
    assert not recorder.training and recorder.head.weight.grad is None


def test_a_pack_teaches_what_it_would_answer_on_a_device(digits_pack, one_thread):
    images = load_digits("test").subset(np.arange(60))
    info = digits_pack.manifest.model
    teacher = open_teacher(str(digits_pack.path), images, np.arange(60), CPU, "fp32")
    logits, labels = teacher.of_rows(np.arange(60))
    pixels = normalise(images.read(np.arange(60)), info.mean, info.std)
    expected = OrtEngine(threads=1).predictor(digits_pack, digits_pack.weights())(pixels)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-3, atol=1e-3)
    assert teacher.accuracy(np.arange(60)) == pytest.approx((expected.argmax(1) == labels.numpy()).mean())
    assert np.isnan(teacher.accuracy(np.arange(0)))


@pytest.mark.parametrize("factor", [2, 3])
def test_images_of_another_size_are_resized_for_the_teacher(factor, digits_pack, one_thread):
    digits = load_digits("test").subset(np.arange(100))
    larger = digits.read(np.arange(100)).repeat(factor, 1).repeat(factor, 2)
    images = ImageSet.from_arrays(larger, digits.labels, digits.classes)
    own, resized = (
        open_teacher(str(digits_pack.path), source, np.arange(100), CPU, "fp32") for source in (digits, images)
    )
    assert resized.accuracy(np.arange(100)) > own.accuracy(np.arange(100)) - 0.06 > 0.8


def test_the_checkpoint_names_the_teacher_but_not_where_it_lay(learned, tmp_path, one_thread):
    notes, reports = [], []
    options = replace(OPTIONS, epochs=1, teacher=str(learned))
    pretrain(colours(), tmp_path / "warm.safetensors", options, on_epoch=reports.append, note=notes.append)
    training = warmup.load(tmp_path / "warm.safetensors")[1].training
    assert training["teacher"] == "resnet-c-small (colours.safetensors)" and training["teacher_accuracy"] == 1.0
    assert "accuracy 1.0000" in notes[0] and learned.parent.name not in str(training) + notes[0]
    assert 0 < reports[0].teacher_seconds < reports[0].seconds


@pytest.mark.parametrize("classes", [CLASSES[::-1], CLASSES[:2], (*CLASSES, "dog"), ("ant", "bee", "dog")])
def test_other_classes_or_another_order_are_refused_before_anything_is_trained(classes, warm, tmp_path):
    images = noise_images(classes=classes)
    with pytest.raises(UsageError, match=r"other classes than the images.*train it on the same folders"):
        pretrain(images, tmp_path / "w.safetensors", replace(OPTIONS, teacher=str(warm)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none.safetensors", "none.edgepack", "torn.safetensors", "torn.edgepack"])
def test_a_teacher_that_cannot_be_read_is_one_line(name, tmp_path):
    if name.startswith("torn"):
        (tmp_path / name).write_bytes(b"torn" * 100)
    with pytest.raises(BadInputError) as error:
        open_teacher(str(tmp_path / name), noise_images(), np.arange(12), CPU)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resnet-c", "mobilenet-c"])
def test_a_pack_that_names_another_model_than_its_own_is_one_line(name, digits_pack, tmp_path, one_thread):
    path = tmp_path / "renamed.edgepack"
    manifest = digits_pack.manifest
    renamed = to_json(replace(manifest, model=replace(manifest.model, name=name)))
    with zipfile.ZipFile(digits_pack.path) as old, zipfile.ZipFile(path, "w") as new:
        for file in old.namelist():
            new.writestr(file, renamed if file == MANIFEST else old.read(file))
    with pytest.raises(BadInputError, match="weights do not fit the model"):
        open_teacher(str(path), load_digits("test"), np.arange(10), CPU)
