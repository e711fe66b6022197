"""Pretraining on a set small enough to learn in two epochs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_sel.data.dataset import ImageSet, channel_statistics, normalise
from edge_sel.errors import DataError, UsageError
from edge_sel.server import warmup
from edge_sel.server.batches import Batches, TrainingBatch
from edge_sel.server.pretrain import PretrainOptions, pretrain
from tests.server.conftest import colours

OPTIONS = PretrainOptions(
    model="resnet-c-small", epochs=2, batch_size=8, learning_rate=0.05, crop_padding=1, validation_fraction=0.2,
    device="cpu", precision="fp32", seed=3, robust=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrain") / "warm.safetensors"
    reports = []
    info = pretrain(colours(), path, OPTIONS, on_epoch=reports.append)
    return path, info, reports


def test_two_epochs_learn_what_is_separable(run):
    path, _, reports = run
    assert [r.epoch for r in reports] == [1, 2]
    assert reports[1].train_loss < reports[0].train_loss
    assert reports[1].validation_accuracy == 1.0 and all(r.seconds > 0 for r in reports)
    model, info = warmup.load(path)
    images = colours()
    with torch.no_grad():
        logits = model(torch.from_numpy(normalise(images.read(np.arange(60)), info.mean, info.std)))
    assert (logits.argmax(1).numpy() == images.labels).mean() > 0.95


def test_the_checkpoint_says_how_it_was_made(run):
    path, info, reports = run
    _, read = warmup.load(path)
    assert read == info
    mean, std = channel_statistics(colours())
    assert read.mean == tuple(map(float, mean)) and read.std == tuple(map(float, std))
    assert read.classes == ("red", "green", "blue") and read.image_size == (12, 12) and read.model == OPTIONS.model
    assert read.training["validation_accuracy"] == reports[-1].validation_accuracy
    assert read.training["images"] == 48 and read.training["seed"] == 3 and read.training["finished_epochs"] == 2


def test_the_checkpoint_names_the_images_that_training_never_saw(run, monkeypatch, tmp_path):
    seen, read = set(), Batches.shuffled

    def shuffled(self, indices, *rest):
        seen.update(self.images.ids[row] for row in indices)
        return read(self, indices, *rest)

    monkeypatch.setattr(Batches, "shuffled", shuffled)
    pretrain(colours(), tmp_path / "warm.safetensors", replace(OPTIONS, epochs=1))
    held_out = warmup.load(run[0])[1].held_out
    assert len(held_out) == 12 and seen.isdisjoint(held_out) and seen | set(held_out) == set(colours().ids)


def test_the_same_seed_gives_the_same_weights(run, tmp_path):
    pretrain(colours(), tmp_path / "again.safetensors", OPTIONS)
    again, _ = warmup.load(tmp_path / "again.safetensors")
    first, _ = warmup.load(run[0])
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def state_after(path, monkeypatch, learning_rate, *more):
    """Of a model that was trained with one more group of pictures in every batch, if any."""
    read = Batches.shuffled

    def shuffled(self, *given):
        for (group,), y, x in read(self, *given):
            copies = 1 + len(more)
            groups = [group, *(torch.full_like(group, value) for value in more)]
            yield TrainingBatch(groups, torch.cat([y] * copies), torch.cat([x] * copies))

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "shuffled", shuffled)
        pretrain(colours(), path, replace(OPTIONS, epochs=1, learning_rate=learning_rate, weight_decay=0.0))
    return warmup.load(path)[0].state_dict()


def test_only_the_first_group_enters_the_running_statistics_but_all_train(tmp_path, monkeypatch, one_thread):
    """What is learned from a place is not what the model ships as its own normalisation."""
    path = tmp_path / "warm.safetensors"
    plain, other = (state_after(path, monkeypatch, 1e-12, *more) for more in ((), (100.0,)))
    running = [name for name in plain if name.endswith(("running_mean", "running_var"))]
    assert running and all(torch.allclose(plain[name], other[name], rtol=1e-4, atol=1e-5) for name in running)
    plain, other = (state_after(path, monkeypatch, 0.05, *more)["head.bias"] for more in ((), (100.0,)))
    assert not torch.allclose(plain, other)


def test_one_class_or_an_unknown_model_trains_nothing(tmp_path):
    one = ImageSet.from_arrays(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64), ("only",))
    with pytest.raises(DataError, match="one class only"):
        pretrain(one, tmp_path / "warm.safetensors", OPTIONS)
    with pytest.raises(UsageError, match="unknown model"):
        pretrain(colours(), tmp_path / "warm.safetensors", PretrainOptions(model="resnet-z", device="cpu"))
    assert list(tmp_path.iterdir()) == []


def stripes(count: int = 240) -> ImageSet:
    """Rows, columns and checks in grey, of random phase and contrast, so that colour and light tell nothing."""
    rng = np.random.default_rng(0)
    labels, y, x = np.arange(count) % 3, *np.mgrid[:12, :12]
    waves = np.stack([y // 2 % 2, x // 2 % 2, (x // 2 + y // 2) % 2])[labels]
    waves = np.where(rng.random((count, 1, 1)) < 0.5, waves, 1 - waves) * rng.uniform(60, 120, (count, 1, 1))
    pixels = np.repeat((waves + rng.uniform(20, 100, (count, 1, 1)))[..., None], 3, axis=3)
    return ImageSet.from_arrays(pixels.astype(np.uint8), labels, ("rows", "columns", "checks"))


@pytest.mark.slow
def test_robust_training_makes_a_model_that_stands_random_cameras(tmp_path, one_thread):
    """Both are judged by the same cameras, and the same seed gives the same weights."""
    options = replace(OPTIONS, epochs=8, batch_size=16, flip=False, crop_padding=0)
    accuracy = {}
    for name, robust in (("plain", False), ("robust", True), ("again", True)):
        info = pretrain(stripes(), tmp_path / f"{name}.safetensors", replace(options, robust=robust))
        accuracy[name] = info.training["camera_accuracy"]
        assert info.training["robust"] is robust
    assert accuracy["robust"] > accuracy["plain"] + 0.05 and accuracy["again"] == accuracy["robust"]
    first, again = (warmup.load(tmp_path / f"{name}.safetensors")[0].state_dict() for name in ("robust", "again"))
    assert all(torch.equal(first[key], again[key]) for key in first)
