"""Copies and frames of one scene are found; different images, however alike, are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_sel.data import duplicates
from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.data.duplicates import SIDE, WINDOW, find_duplicates


def scenes(count, rng, side=SIDE):
    """float [count, side + 8, side + 8, 3], smooth random pictures with a margin to move in."""
    pictures = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return np.stack([Image.fromarray(p).resize((side + 8, side + 8), Image.Resampling.BICUBIC) for p in pictures])


def frame(scene, rng, side=SIDE, moved=2, noise=2.0):
    """One picture of a scene: displaced, lighter or darker, with noise."""
    dy, dx = rng.integers(4 - moved, 5 + moved, 2)
    seen = scene[dy : dy + side, dx : dx + side] * rng.uniform(0.93, 1.07)
    return np.clip(seen + rng.normal(0, noise, seen.shape), 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def _one_is_enough(monkeypatch):
    monkeypatch.setattr(duplicates, "LEAST_OF_CLASS", 1)


def image_set(pixels, labels):
    return ImageSet.from_arrays(np.asarray(pixels, np.uint8), labels, [str(n) for n in range(max(labels) + 1)])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([24, 32, 48, 96]))
def test_one_frame_of_each_scene_stays_and_hardly_another(seed, frames, side):
    rng = np.random.default_rng(seed)
    made = scenes(8, rng, side)
    pixels = [frame(scene, rng, side, moved=side // 24) for scene in made for _ in range(frames)]
    found = find_duplicates(image_set(pixels, np.repeat(np.arange(8), frames).tolist()))
    assert set(range(0, 8 * frames, frames)) <= set(found.distinct.tolist())
    assert len(found.distinct) <= 8 + max(1, frames // 2) * (frames > 1)  # one in twenty pairs may be missed
    assert sorted([*found.distinct, *found.left_out]) == list(range(8 * frames))
    assert not len(found.contradictory)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_copies_are_found_wherever_they_are(seed):
    rng = np.random.default_rng(seed)
    once = [frame(scene, rng) for scene in scenes(3 * WINDOW, rng)]
    order = rng.permutation(np.repeat(np.arange(len(once)), 2))
    found = find_duplicates(image_set([once[n] for n in order], (order % 2).tolist()))
    assert len(found.distinct) == len(once) == len(set(order[found.distinct].tolist()))


def test_an_image_of_another_class_is_kept_and_named():
    rng = np.random.default_rng(0)
    one, other = scenes(2, rng)
    found = find_duplicates(image_set([frame(one, rng), frame(other, rng), frame(one, rng)], [0, 1, 1]))
    assert found.distinct.tolist() == [0, 1, 2] and found.contradictory.tolist() == [2]


def test_the_same_background_is_not_the_same_picture():
    """A camera that never moves; what it sees is as large as a block."""
    rng = np.random.default_rng(1)
    background = scenes(1, rng)[0]
    pixels = []
    for _ in range(20):
        picture = background.astype(float)
        y, x = rng.integers(8, 26, 2)
        picture[y : y + 6, x : x + 6] = 255 - picture[y : y + 6, x : x + 6].mean()
        pixels.append(frame(picture, rng, moved=0))
    empty = frame(background, rng, moved=0)
    found = find_duplicates(image_set([empty, *pixels], [0, *[1] * 20]))
    assert not len(found.contradictory)  # none is like the empty scene
    assert len(found.distinct) >= 15  # two of them may be in nearly the same place


@pytest.mark.parametrize("part", ["field", "test"])
def test_handwritten_digits_are_not_copies_of_each_other(part):
    digits = load_digits(part)
    assert len(find_duplicates(digits).left_out) <= 1


def test_pictures_without_contrast_are_copies_only_if_they_are_equal():
    levels = np.array([10, 10, 128, 128, 200])
    found = find_duplicates(image_set(np.ones((5, 32, 32, 3)) * levels[:, None, None, None], [0] * 5))
    assert found.distinct.tolist() == [0, 2, 4]
    noise = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3))
    assert len(find_duplicates(image_set(noise, [0] * 100)).distinct) == 100


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_be_alike(count):
    pixels = np.zeros((count, 32, 32, 3), np.uint8)
    found = find_duplicates(ImageSet.from_arrays(pixels, [0] * count, ["a"]))
    assert found.distinct.tolist() == list(range(count)) and not len(found.left_out)


def test_a_slow_pan_keeps_a_picture_of_everything_it_passes():
    """Each frame is like the one before; the last shows nothing of the first."""
    rng = np.random.default_rng(2)
    wide = np.concatenate(list(scenes(6, rng)), axis=1)
    pixels = [wide[4:36, x : x + 32] for x in range(0, wide.shape[1] - 32, 2)]
    found = find_duplicates(image_set(pixels, [0] * len(pixels)))
    assert len(pixels) / 4 < len(found.distinct) < len(pixels) / 1.5


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 12))
def test_no_class_is_left_with_too_few(labels, least):
    pixels = np.ones((len(labels), 8, 8, 3)) * 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "LEAST_OF_CLASS", least)
        found = find_duplicates(image_set(pixels, labels))
    assert sorted([*found.distinct, *found.left_out]) == list(range(len(labels)))
    for label in set(labels):
        left = sum(labels[row] == label for row in found.distinct)
        assert left == min(labels.count(label), max(least, 1))
