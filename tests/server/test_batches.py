"""What a pretraining batch is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sel.data.dataset import channel_statistics, normalise
from edge_sel.server.batches import Batches, BatchOptions, augment, in_groups
from tests.server.conftest import colours


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
    plain = BatchOptions(batch_size=16, flip=False, crop_padding=0)
    seen = [x for (x,), _, _ in batches.shuffled(np.arange(50), plain, torch.Generator().manual_seed(0))]
    assert [len(x) for x in seen] == [16, 16, 16]
    rows = {tuple(np.rint(row.numpy()).astype(int).ravel()[:40]) for x in seen for row in x.contiguous()}
    assert len(rows) == 48
    few = [x for (x,), _, _ in batches.shuffled(np.arange(5), plain, torch.Generator().manual_seed(0))]
    assert [len(x) for x in few] == [5], "fewer images than a batch are one batch"


def test_augmentation_only_flips_and_shifts():
    x = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6)
    both = BatchOptions(flip=True, crop_padding=0)
    generator = torch.Generator().manual_seed(0)
    views = torch.cat([augment(x, both, generator)[:1] for _ in range(20)])
    flips = [torch.equal(view, x[0].flip(2)) for view in views]
    assert any(flips) and not all(flips)
    assert all(flip or torch.equal(view, x[0]) for view, flip in zip(views, flips, strict=True))
    shifted = BatchOptions(flip=False, crop_padding=2)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    windows = [padded[:, :, i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
    places = set()
    for _ in range(30):
        for image, view in enumerate(augment(x, shifted, generator)):
            places |= {k for k, window in enumerate(windows) if torch.equal(view, window[image])}
            assert any(torch.equal(view, window[image]) for window in windows)
    assert len(places) > 12
    assert torch.equal(augment(x, BatchOptions(flip=False, crop_padding=0), generator), x)


def pictures(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("count", [40, 60, 128])
def test_cameras_take_their_share_in_two_places_and_among_clean_pictures(count):
    x, views = pictures(count), BatchOptions(camera_share=0.6)
    first, *places = in_groups(x, views, torch.Generator().manual_seed(0))
    third = round(count / 5)
    assert [len(first), *map(len, places)] == [count - 2 * third, third, third]
    assert torch.equal(first[third:], x[third : len(first)]), "the others stay as they are"
    for part, original in zip((first[:third], *places), (x[:third], *x[len(first) :].split(third)), strict=True):
        assert part.shape == original.shape and part.min() >= 0 and part.max() <= 255.5
        assert not torch.equal(part, original)


@pytest.mark.parametrize("count", [24, 64, 128, 200])
def test_cameras_may_take_all(count):
    """In thirds that need not be whole."""
    groups = in_groups(pictures(count), BatchOptions(camera_share=1.0), torch.Generator().manual_seed(0))
    assert sum(map(len, groups)) == count and len(groups) == 3
    changed = (torch.cat(groups) != pictures(count)).flatten(1).any(1)
    assert changed.sum() >= count - 1


def test_pictures_of_one_place_are_more_alike_than_any():
    """Of the same picture, taken by every camera."""
    same, views = pictures(1).expand(64, -1, -1, -1), BatchOptions(camera_share=1.0)
    apart = []
    for seed in range(20):
        groups = in_groups(same, views, torch.Generator().manual_seed(seed))
        apart.append([float(group.mean((1, 2, 3)).std()) for group in groups])
    anywhere, *places = np.mean(apart, axis=0)
    assert max(places) < 0.6 * anywhere


@pytest.mark.parametrize(("count", "share"), [(5, 0.6), (30, 0.6), (64, 0.0)])
def test_without_cameras_or_with_few_images_there_is_one_group(count, share):
    x = pictures(count)
    (group,) = in_groups(x, BatchOptions(camera_share=share), torch.Generator().manual_seed(0))
    assert torch.equal(group[round(share * count) :], x[round(share * count) :])


def test_clean_pixels_are_those_that_the_groups_were_made_of():
    """In the same order, with the same crop and flip: only cameras make a difference."""
    batches = Batches(colours(60), (0.4,) * 3, (0.2,) * 3, torch.device("cpu"))
    for share in (0.0, 0.6):
        views = BatchOptions(batch_size=60, crop_padding=2, camera_share=share)
        (batch,) = batches.shuffled(np.arange(60), views, torch.Generator().manual_seed(2))
        same = (torch.cat(batch.groups) - batches.normalise(batch.clean)).abs().flatten(1).amax(1) < 1e-5
        third = round(share * 60 / 3)
        expected = torch.arange(60)
        assert same[(expected >= third) & (expected < 60 - 2 * third)].all()
        assert int(same.sum()) <= 60 - 3 * third + 3
        assert torch.equal(batch.labels, torch.from_numpy(brightest_channel(batch.clean)))


def brightest_channel(pixels: torch.Tensor) -> np.ndarray:
    """The label of a noisy square of ``colours``."""
    return pixels.mean((2, 3)).argmax(1).numpy()


def test_the_same_seed_gives_the_same_batches():
    batches = Batches(colours(60), (0.0,) * 3, (1 / 255,) * 3, torch.device("cpu"))
    views = BatchOptions(batch_size=48, camera_share=0.6)
    one, other = (list(batches.shuffled(np.arange(60), views, torch.Generator().manual_seed(5))) for _ in range(2))
    for (groups, y, _), (again, z, _) in zip(one, other, strict=True):
        assert torch.equal(torch.cat(groups), torch.cat(again)) and torch.equal(y, z)
