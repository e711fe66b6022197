"""Augmentation on the device does what the usual one does."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge_sel.data.dataset import normalise
from edge_sel.reference.images import DeviceImages, Draw
from edge_sel.reference.systems import Augmentation
from tests.reference.conftest import CPU, colours

MEAN, STD = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.3, 0.25], np.float32)


@pytest.fixture
def images():
    return DeviceImages(colours(), MEAN, STD, CPU)


def test_without_a_draw_they_are_only_normalised(images):
    index = torch.tensor([5, 0, 7])
    expected = normalise(colours().read(index.numpy()), MEAN, STD)
    x = images.batch(index)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("border", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_a_shift_is_a_crop_of_the_padded_image(images, border, mode):
    index = torch.tensor([1, 2])
    draw = Draw(torch.zeros(60, dtype=torch.bool), torch.full((60,), -3), torch.full((60,), 2))
    pixels = torch.from_numpy(colours().read(index.numpy())).permute(0, 3, 1, 2).float() / 255
    padded = F.pad(pixels, (4, 4, 4, 4), mode=mode)[:, :, 4 - 3 : 20 - 3, 4 + 2 : 20 + 2]
    expected = (padded - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(images.batch(index, draw, border), expected, atol=1e-5, rtol=0)


def test_a_flip_mirrors(images):
    index = torch.tensor([4, 9])
    draw = Draw(torch.arange(60) == 4, torch.zeros(60, dtype=torch.int64), torch.zeros(60, dtype=torch.int64))
    plain, flipped = images.batch(index), images.batch(index, draw)
    assert torch.equal(flipped[0], plain[0].flip(2)) and torch.equal(flipped[1], plain[1])


def test_alternating_flips_show_both_sides_in_two_epochs(images):
    first, second, third = (images.draw(Augmentation("alternate", 2), epoch, 0).flip for epoch in (1, 2, 3))
    assert torch.equal(first, ~second) and torch.equal(first, third) and 10 < int(first.sum()) < 50


def test_a_draw_follows_from_seed_and_epoch(images):
    options = Augmentation("random", 4)
    one, same, other, seed = (images.draw(options, e, s) for e, s in ((1, 0), (1, 0), (2, 0), (1, 1)))
    assert (
        torch.equal(one.down, same.down)
        and not torch.equal(one.down, other.down)
        and not torch.equal(one.down, seed.down)
    )
    assert set(one.right.tolist()) <= set(range(-4, 5))
    assert not images.draw(Augmentation("none", 0), 1, 0).flip.any()


def test_what_does_not_fit_is_read_batch_by_batch(images):
    larger = DeviceImages(colours(), MEAN, STD, CPU, share=0.0)
    assert images.resident and not larger.resident
    index, draw = torch.tensor([3, 50, 7]), images.draw(Augmentation(), 1, 0)
    assert torch.equal(larger.batch(index, draw), images.batch(index, draw))
