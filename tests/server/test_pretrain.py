"""Pretraining on a set small enough to learn in two epochs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import channel_statistics, normalise
from edge_sel.errors import DataError, UsageError
from edge_sel.server import warmup
from edge_sel.server.pretrain import Batches, PretrainOptions, augment, pretrain

OPTIONS = PretrainOptions(
    model="resnet-c-small", epochs=2, batch_size=8, learning_rate=0.05, crop_padding=1, validation_fraction=0.2,
    device="cpu", precision="fp32", seed=3,
)  # fmt: skip


def colours(count: int = 60) -> ImageSet:
    """Noisy red, green and blue squares."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    pixels = rng.integers(40, 120, (count, 12, 12, 3))
    pixels[np.arange(count), :, :, labels] += 100
    return ImageSet.from_arrays(pixels.astype(np.uint8), labels, ("red", "green", "blue"))


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


def test_the_same_seed_gives_the_same_weights(run, tmp_path):
    pretrain(colours(), tmp_path / "again.safetensors", OPTIONS)
    again, _ = warmup.load(tmp_path / "again.safetensors")
    first, _ = warmup.load(run[0])
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_one_class_or_an_unknown_model_trains_nothing(tmp_path):
    one = ImageSet.from_arrays(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64), ("only",))
    with pytest.raises(DataError, match="one class only"):
        pretrain(one, tmp_path / "warm.safetensors", OPTIONS)
    with pytest.raises(UsageError, match="unknown model"):
        pretrain(colours(), tmp_path / "warm.safetensors", PretrainOptions(model="resnet-z", device="cpu"))
    assert list(tmp_path.iterdir()) == []


def test_batches_are_normalised_like_the_device_does_it():
    images = colours(6)
    mean, std = (tuple(float(v) for v in values) for values in channel_statistics(images))
    batches = Batches(images, mean, std, torch.device("cpu"))
    x, y = batches.read(np.array([4, 1]))
    np.testing.assert_allclose(
        batches.normalise(x).numpy(), normalise(images.read([4, 1]), mean, std), rtol=1e-5, atol=1e-5
    )
    assert y.tolist() == images.labels[[4, 1]].tolist()


def test_an_epoch_shows_every_image_at_most_once_in_whole_batches():
    images = colours(60)
    batches = Batches(images, (0.0,) * 3, (1 / 255,) * 3, torch.device("cpu"))
    plain = PretrainOptions(batch_size=16, flip=False, crop_padding=0)
    seen = [x for x, _ in batches.shuffled(np.arange(50), plain, torch.Generator().manual_seed(0))]
    assert [len(x) for x in seen] == [16, 16, 16]
    rows = {tuple(np.rint(row.numpy()).astype(int).ravel()[:40]) for x in seen for row in x.contiguous()}
    assert len(rows) == 48
    few = [x for x, _ in batches.shuffled(np.arange(5), plain, torch.Generator().manual_seed(0))]
    assert [len(x) for x in few] == [5], "fewer images than a batch are one batch"


def test_augmentation_only_flips_and_shifts():
    x = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6)
    both = PretrainOptions(flip=True, crop_padding=0)
    generator = torch.Generator().manual_seed(0)
    views = torch.cat([augment(x, both, generator)[:1] for _ in range(20)])
    flips = [torch.equal(view, x[0].flip(2)) for view in views]
    assert any(flips) and not all(flips)
    assert all(flip or torch.equal(view, x[0]) for view, flip in zip(views, flips, strict=True))
    shifted = PretrainOptions(flip=False, crop_padding=2)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    windows = [padded[:, :, i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
    places = set()
    for _ in range(30):
        for image, view in enumerate(augment(x, shifted, generator)):
            places |= {k for k, window in enumerate(windows) if torch.equal(view, window[image])}
            assert any(torch.equal(view, window[image]) for window in windows)
    assert len(places) > 12
    assert torch.equal(augment(x, PretrainOptions(flip=False, crop_padding=0), generator), x)


def test_robust_training_retakes_a_share_of_every_batch():
    images = colours(60)
    batches = Batches(images, (0.0,) * 3, (1 / 255,) * 3, torch.device("cpu"))
    plain = PretrainOptions(batch_size=20, flip=False, crop_padding=0)
    robust = replace(plain, robust=True, camera_share=0.6, camera_strength=1.0)
    for options, expected in ((plain, 0), (robust, 12)):
        for x, _ in batches.shuffled(np.arange(60), options, torch.Generator().manual_seed(0)):
            whole = (x == x.round()).flatten(1).all(1)  # a stored value, as the images have them
            assert int((~whole).sum()) <= expected and x.shape == (20, 3, 12, 12)
            assert expected == 0 or int((~whole).sum()) >= expected - 4  # a camera may be perfect


def stripes(count: int = 240) -> ImageSet:
    """Rows, columns and checks in grey, of random phase and contrast, so that colour and light tell nothing."""
    rng = np.random.default_rng(0)
    labels, y, x = np.arange(count) % 3, *np.mgrid[:12, :12]
    waves = np.stack([y // 2 % 2, x // 2 % 2, (x // 2 + y // 2) % 2])[labels]
    waves = np.where(rng.random((count, 1, 1)) < 0.5, waves, 1 - waves) * rng.uniform(60, 120, (count, 1, 1))
    pixels = np.repeat((waves + rng.uniform(20, 100, (count, 1, 1)))[..., None], 3, axis=3)
    return ImageSet.from_arrays(pixels.astype(np.uint8), labels, ("rows", "columns", "checks"))


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
