"""Random cameras: perfect ones change nothing, each imperfection does what its physics says, seeds give the same."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.data.shifts import expose
from edge_sel.data.shifts import to_light as decode
from edge_sel.server.cameras import Cameras, draw_cameras, draw_place, take_pictures, to_linear, to_stored


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 4, size: tuple[int, int] = (12, 20)) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=rng(1))


def perfect(count: int = 4, **changed: torch.Tensor) -> Cameras:
    cameras = draw_cameras(count, 0.0, rng())
    return cameras._replace(**changed)


def taken(pixels: torch.Tensor, **changed: torch.Tensor) -> torch.Tensor:
    return take_pictures(pixels, perfect(len(pixels), **changed), rng())


def test_light_is_that_of_the_device_side():
    stored = torch.arange(256) / 255
    light = to_linear(stored).numpy()
    np.testing.assert_allclose(light, decode(np.arange(256, dtype=np.uint8)), atol=1e-6)
    assert np.array_equal(np.rint(255 * to_stored(torch.from_numpy(light)).numpy()), np.arange(256))
    assert np.array_equal(expose(light), np.arange(256))


def test_a_perfect_camera_gives_the_picture():
    torch.testing.assert_close(taken(pictures()), pictures(), atol=1e-4, rtol=0)


@given(strength=st.floats(0, 2), seed=st.integers(0, 99))
def test_every_picture_can_be_stored(strength, seed):
    generator = rng(seed)
    found = take_pictures(pictures(), draw_cameras(4, strength, generator), generator)
    assert found.shape == pictures().shape and found.isfinite().all() and found.min() >= 0 and found.max() <= 1


def test_a_stop_less_is_half_of_the_light():
    half = taken(pictures(), gain=torch.full((4, 3), 0.5))
    torch.testing.assert_close(to_linear(half), to_linear(pictures()) / 2, atol=1e-4, rtol=1e-3)


def test_a_veil_takes_contrast_and_adds_its_colour():
    veil = torch.tensor([[0.4, 1.0, 0.5, 0.0]]).repeat(4, 1)
    expected = 0.6 * to_linear(pictures()) + 0.4 * torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    torch.testing.assert_close(to_linear(taken(pictures(), veil=veil)), expected, atol=1e-4, rtol=1e-3)


def test_a_blur_keeps_the_light_and_spreads_a_point_along_its_direction():
    point = torch.zeros(1, 3, 33, 33)
    point[..., 16, 16] = 1.0
    spread = to_linear(taken(point, blur=torch.tensor([[0.04, 0.0, 0.0]])))[0, 0]
    assert float(spread.sum()) == pytest.approx(1.0, rel=0.02)
    row, column = spread.sum(1), spread.sum(0)
    place = torch.arange(33.0) - 16
    assert float((column * place**2).sum()) == pytest.approx((0.04 * 33) ** 2, rel=0.1)
    assert float((row * place**2).sum()) < 0.05
    turned = to_linear(taken(point, blur=torch.tensor([[0.04, 0.0, torch.pi / 2]])))[0, 0]
    torch.testing.assert_close(turned, spread.T, atol=1e-4, rtol=0)


def test_a_coarse_picture_is_one_of_blocks_with_the_same_light():
    found = to_linear(taken(pictures(size=(16, 16)), resolution=torch.full((4,), 0.5)))
    blocks = to_linear(pictures(size=(16, 16))).reshape(4, 3, 8, 2, 8, 2).mean((3, 5))
    torch.testing.assert_close(found, blocks.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("light", [0.1, 0.4])
def test_shot_noise_grows_with_the_root_of_the_light(light):
    grey = to_stored(torch.full((1, 3, 200, 200), light))
    noise = torch.tensor([[0.05, 0.01]])
    found = to_linear(taken(grey, noise=noise))
    assert float(found.std()) == pytest.approx((0.05**2 * light + 0.01**2) ** 0.5, rel=0.03)


def test_stronger_cameras_change_more():
    means = []
    for strength in (0.0, 0.5, 1.0):
        generator = rng()
        found = take_pictures(pictures(200), draw_cameras(200, strength, generator), generator)
        means.append(float((found - pictures(200)).abs().mean()))
    assert means[0] < 1e-4 < means[1] < means[2]


@given(st.integers(0, 200))
def test_cameras_of_one_place_differ_by_a_part_of_what_any_two_do(seed):
    """In every number: around a camera that was drawn first, a part of the way to others."""
    generator = rng(seed)
    common, own = draw_cameras(1, 1.0, generator), draw_cameras(50, 1.0, generator)
    generator = rng(seed)
    place = draw_place(1.0, generator).cameras(50, generator)
    for centre, any_two, here in zip(common, own, place, strict=True):
        assert here.shape == any_two.shape
        torch.testing.assert_close(here - centre, 0.3 * (any_two - centre), rtol=1e-4, atol=1e-5)


def test_places_differ_from_one_another():
    stops = torch.stack([draw_place(1.0, rng(seed)).common.gain.log2().mean() for seed in range(40)])
    assert stops.std() > 0.3


def test_the_cameras_of_a_place_are_others_each_time_they_are_asked_for():
    place, generator = draw_place(1.0, rng()), rng(1)
    first, second = (place.cameras(3, generator).gain for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(place.cameras(3, rng(1)).gain, first)


def test_the_same_seed_gives_the_same_pictures():
    first, again, other = (
        take_pictures(pictures(), draw_cameras(4, 1.0, generator), generator) for generator in (rng(), rng(), rng(5))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
