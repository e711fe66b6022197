"""Field conditions that a server makes up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from edge_sel.server import cameras
from edge_sel.server.cameras import (
    CameraPlace,
    draw_cameras,
    draw_place,
    grey,
    inverted,
    look,
    simulate_fields,
    simulate_place,
)
from tests.server.conftest import noise_images


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(images) -> np.ndarray:
    return images.read(np.arange(len(images)))


def somewhere(strength: float = 1.0, seed: int = 0) -> CameraPlace:
    return draw_place(strength, seeded(seed))


def test_a_place_keeps_what_the_pictures_are_of():
    images = noise_images(12)
    seen = simulate_place(images, somewhere(), seeded())
    assert (seen.ids, seen.classes, list(seen.labels)) == (images.ids, images.classes, list(images.labels))
    assert pixels(seen).shape == pixels(images).shape and (pixels(seen) != pixels(images)).any()


def test_perfect_cameras_take_the_pictures_as_they_are():
    plain = pixels(noise_images(12))
    assert np.abs(look(somewhere(0.0), plain, seeded()).astype(int) - plain).max() <= 1


def test_every_picture_is_taken_by_its_own_camera_however_many_are_taken_at_once(monkeypatch):
    """Without noise, which is drawn by the batch."""
    plain, place = pixels(noise_images(12)), somewhere()
    quiet = draw_cameras(12, 1.0, seeded())
    quiet = quiet._replace(noise=torch.zeros_like(quiet.noise))
    monkeypatch.setattr(CameraPlace, "cameras", lambda self, count, generator: quiet)
    whole = look(place, plain, seeded())
    monkeypatch.setattr(cameras, "_AT_ONCE", 5)
    np.testing.assert_allclose(look(place, plain, seeded()), whole, atol=1)
    assert len({picture.tobytes() for picture in look(place, np.repeat(plain[:1], 12, axis=0), seeded())}) == 12


def test_cameras_of_a_place_are_much_alike():
    for seed in range(5):
        anywhere, here = draw_cameras(500, 1.0, seeded(seed)), somewhere(seed=seed).cameras(500, seeded(seed))
        for field in ("gain", "resolution", "noise", "veil"):
            assert getattr(here, field).std(0).mean() < 0.4 * getattr(anywhere, field).std(0).mean()


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_cameras_of_a_place_can_take_pictures(strength):
    for seed in range(20):
        cameras = somewhere(strength, seed).cameras(50, seeded(seed))
        assert (cameras.resolution > 0).all() and (cameras.resolution <= 1).all() and (cameras.blur[:, :2] >= 0).all()
        assert (cameras.veil >= 0).all() and (cameras.veil <= 1).all() and (cameras.noise >= 0).all()


def test_fields_begin_with_the_pictures_as_they_are_and_by_pairs_train_on_a_quarter():
    """All are judged by as many."""
    training, validation = noise_images(48), noise_images(24)
    fields = list(simulate_fields(training, validation, 4, seed=0))
    assert fields[0] == (training, validation)
    assert [(len(seen), len(judged)) for seen, judged in fields] == [(48, 24)] * 3 + [(12, 24)] * 2
    few = [seen for seen, _ in fields if len(seen) == 12]
    assert all(field.class_counts().tolist() == [4, 4, 4] for field in few), "of every class as many"
    assert few[0].ids != few[1].ids


def test_both_sets_of_a_field_are_seen_in_the_same_place(monkeypatch):
    places = []
    taken = cameras.simulate_place
    monkeypatch.setattr(
        cameras, "simulate_place", lambda images, place, rng: places.append(place) or taken(images, place, rng)
    )
    list(simulate_fields(noise_images(12), noise_images(12), 5, seed=0))
    assert [a is b for a, b in pairwise(places)] == [True, False, True, False, True], "of every second one"
    assert [place.strength for place in places[::2]] == [0.5, 1.0, 1.5]


def test_every_second_field_has_a_style_in_both_sets(monkeypatch):
    training, validation = noise_images(12), noise_images(9)
    monkeypatch.setattr(cameras, "STYLES", (inverted, grey))
    fields = [tuple(pixels(part) for part in field) for field in simulate_fields(training, validation, 4, seed=0)]
    assert all((255 - seen == pixels(of)).all() for seen, of in zip(fields[2], (training, validation), strict=True))
    assert all((seen.min(-1) == seen.max(-1)).all() for seen in fields[4])


def test_the_same_seed_gives_the_same_fields():
    one, same, other = (
        [pixels(part) for field in simulate_fields(noise_images(12), noise_images(9), 2, seed) for part in field]
        for seed in (0, 0, 1)
    )
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one[:4], other[:4], strict=True))


def test_one_place_is_no_division_by_zero():
    assert len(list(simulate_fields(noise_images(12), noise_images(12), 1, seed=0))) == 2
