"""Pictures in other styles."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sel.data.builtin import load_digits
from edge_sel.server.cameras import STYLES, drawn, inverted, painted, printed, recoloured, restyle

NAMES = [style.__name__ for style in STYLES]
every_style = pytest.mark.parametrize("style", STYLES, ids=NAMES)


def scenes(side: int = 48, count: int = 6) -> np.ndarray:
    """Coloured discs on coloured grounds, with some noise."""
    rng, at = np.random.default_rng(3), np.indices((side, side))
    made = []
    for _ in range(count):
        inside = np.hypot(*(at - rng.uniform(0.3, 0.7, 2)[:, None, None] * side)) < rng.uniform(0.15, 0.3) * side
        picture = np.where(inside[..., None], rng.uniform(0, 255, 3), rng.uniform(0, 255, 3))
        made.append((picture + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(made)


@pytest.mark.sampled(2)
@every_style
@pytest.mark.parametrize("side", [8, 28, 33, 224])
def test_every_style_keeps_size_and_kind_and_changes_something(style, side):
    images = scenes(side)
    seen = restyle(style, images, np.random.default_rng(0))
    assert seen.shape == images.shape and seen.dtype == np.uint8 and (seen != images).any()
    assert (seen == restyle(style, images, np.random.default_rng(0))).all()


@every_style
def test_pictures_without_anything_on_them_stay_pictures(style):
    flat = np.full((3, 32, 32, 3), 255, np.uint8)
    assert restyle(style, flat, np.random.default_rng(0)).shape == flat.shape
    assert restyle(style, flat[:0], np.random.default_rng(0)).shape == (0, 32, 32, 3)


def test_what_is_on_them_can_still_be_told():
    """Two digits that differ do so in each style, by more than two pictures of noise would."""
    digits = load_digits("pretrain")
    images = digits.read(np.arange(40))
    for style in (drawn, printed, inverted):
        seen = restyle(style, images, np.random.default_rng(0)).reshape(40, -1).astype(float)
        near = np.corrcoef(seen)
        same = digits.labels[:40, None] == digits.labels[None, :40]
        assert near[same & ~np.eye(40, dtype=bool)].mean() > near[~same].mean() + 0.1, style.__name__


def test_colours_are_those_of_another_picture():
    images = scenes()
    order = np.random.default_rng(5).permutation(len(images))
    for style in (recoloured, painted):
        seen = restyle(style, images, np.random.default_rng(5))
        assert np.abs(seen.mean((1, 2)) - images[order].mean((1, 2))).max() < 12


def test_a_print_has_few_colours_and_a_drawing_none():
    images = scenes()
    assert all(len(np.unique(picture)) <= 4 for picture in restyle(printed, images, np.random.default_rng(0)))
    lines = restyle(drawn, images, np.random.default_rng(0))
    assert (lines.min(-1) == lines.max(-1)).all() and np.median(lines) > 200
