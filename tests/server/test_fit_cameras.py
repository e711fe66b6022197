"""Cameras fitted to a signature: the server's images through them look as the device's do."""

import numpy as np
import pytest
import torch

from edge_sel.data.builtin import load_digits
from edge_sel.data.shifts import apply_shift
from edge_sel.data.signature import Signature, measure, take_signature
from edge_sel.server import expert
from edge_sel.server.cameras import CameraPlace, draw_cameras, look
from edge_sel.server.expert import fit_place


def signature_of(images):
    return take_signature(images, np.random.default_rng(0))


@pytest.mark.slow
def test_pictures_of_the_fitted_place_are_nearer_than_those_of_any_random_one(one_thread, monkeypatch):
    """A shift that is none of the simulator's own places."""
    monkeypatch.setattr(expert, "_FIRST", 100)
    monkeypatch.setattr(expert, "_ROUNDS", 4)
    monkeypatch.setattr(expert, "_LOOKED_AT", 64)
    images = load_digits("field")
    wanted = signature_of(apply_shift("low_light", load_digits("test"), seed=3))
    lines = []
    place = fit_place(wanted, images, 0, lines.append)
    figures = [float(word) for line in lines for word in line.replace(",", " ").split() if word[0].isdigit()]
    without, random, fitted = figures
    assert fitted < 0.9 * random and random < without
    pixels = images.read(np.arange(200))
    seen = measure(look(place, pixels, torch.Generator().manual_seed(9)))
    unit = np.abs(wanted.values) + 0.1
    apart = [float((np.abs(values - wanted.values) / unit).mean()) for values in (seen, measure(pixels))]
    assert apart[0] < 0.5 * apart[1], "on other images and by other chance too"


def test_the_same_seed_gives_the_same_place(one_thread, monkeypatch):
    monkeypatch.setattr(expert, "_ROUNDS", 1)
    monkeypatch.setattr(expert, "_FIRST", 20)
    images = load_digits("field").subset(np.arange(40))
    wanted = Signature(signature_of(images).values + 0.1, images.size, 40)
    monkeypatch.setattr(expert, "_POPULATION", 16)
    one, other = (fit_place(wanted, images, 4) for _ in range(2))
    assert one.variety == other.variety
    assert all(torch.equal(a, b) for a, b in zip(one.common, other.common, strict=True))


@pytest.mark.parametrize("variety", [0.0, 1.0])
def test_variety_says_how_far_the_cameras_of_a_place_differ(variety):
    generator = torch.Generator().manual_seed(0)
    common = draw_cameras(1, 1.0, generator)
    cameras = CameraPlace(common, variety).cameras(50, generator)
    spread = max(float(field.std(0).max()) for field in cameras)
    assert (spread == 0) == (variety == 0) and all(len(field) == 50 for field in cameras)
