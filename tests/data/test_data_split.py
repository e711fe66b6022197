from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.shifts import write_folder
from edge_sel.data.split import as_places, split_by_content, stratified_split

labels_lists = st.lists(st.integers(0, 6), max_size=120)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32 - 1)


def split(labels, fraction, seed, **options):
    return stratified_split(labels, fraction, np.random.default_rng(seed), **options)


@given(labels_lists, fractions, seeds, st.none() | st.integers(0, 150))
def test_a_split_is_a_sorted_partition_and_deterministic(labels, fraction, seed, cap):
    rest, held = split(labels, fraction, seed, cap=cap)
    assert rest.dtype == held.dtype == np.int64
    assert sorted([*rest, *held]) == list(range(len(labels)))
    assert (np.diff(rest) > 0).all() and (np.diff(held) > 0).all()
    for first, again in zip((rest, held), split(labels, fraction, seed, cap=cap), strict=True):
        np.testing.assert_array_equal(first, again)


@given(labels_lists, fractions, seeds)
def test_every_class_is_on_both_sides_in_proportion(labels, fraction, seed):
    _, held = split(labels, fraction, seed)
    for kind in set(labels):
        size, taken = labels.count(kind), sum(labels[index] == kind for index in held)
        if size == 1:
            assert taken == 0
        else:
            assert 1 <= taken <= size - 1
            assert abs(taken - size * fraction) <= 1


@given(labels_lists, fractions, seeds, st.integers(0, 60))
def test_the_cap_is_used_up_and_shared_out(labels, fraction, seed, cap):
    values = np.array(labels, dtype=np.int64)
    _, free = split(labels, fraction, seed)
    _, held = split(labels, fraction, seed, cap=cap)
    assert len(held) == min(cap, len(free))
    wanted = np.bincount(values[free], minlength=7)
    taken = np.bincount(values[held], minlength=7)
    assert (taken <= wanted).all()
    if cap >= (wanted > 0).sum():
        assert ((taken > 0) == (wanted > 0)).all()


def test_a_tiny_cap_goes_to_the_largest_classes():
    labels = [0] * 4 + [1] * 40 + [2] * 20
    _, held = split(labels, 0.5, 0, cap=2)
    assert sorted(labels[index] for index in held) == [1, 2]


def test_the_seed_matters_and_the_choice_is_spread():
    labels = np.zeros(100, dtype=int)
    chosen = [tuple(split(labels, 0.1, seed)[1]) for seed in range(20)]
    assert len(set(chosen)) > 15


def test_labels_need_not_be_dense():
    rest, held = split([-3, -3, 1000, 1000, 5], 0.5, 0)
    assert len(held) == 2 and 4 in rest


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_outside_0_to_1_are_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        split([0, 0], fraction, 0)


def test_a_negative_cap_is_refused():
    with pytest.raises(ValueError, match="cap"):
        split([0, 0], 0.5, 0, cap=-1)


CLASSES = ("a", "b", "c")
SIDE = 12


def pictures(count: int, seed: int = 0) -> ImageSet:
    """Noise, so that no two are alike; classes by turns."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)
    return ImageSet.from_arrays(pixels, np.arange(count) % len(CLASSES), CLASSES, [f"{i}.png" for i in range(count)])


def by_content(images: ImageSet, fraction: float = 0.2, cap: int = 500, keep_duplicates: bool = False):
    return split_by_content(images, fraction, cap=cap, keep_duplicates=keep_duplicates)


def roles_of(images: ImageSet, **options) -> dict[str, str]:
    roles = by_content(images, **options)
    named = {images.ids[row]: "learn" for row in roles.training}
    return named | {images.ids[row]: "judge" for row in roles.validation}


POOL = pictures(300)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sets(st.integers(0, len(POOL) - 1), min_size=60), min_size=2, max_size=6), st.randoms())
def test_no_image_ever_changes_its_role_however_a_folder_grows_and_shrinks(folders, random):
    known: dict[str, str] = {}
    for folder in folders:
        rows = sorted(folder)
        random.shuffle(rows)  # other names, another order
        now = roles_of(POOL.subset(rows))
        assert len(now) == len(rows)
        assert all(known.setdefault(name, role) == role for name, role in now.items())


def test_names_folders_and_files_do_not_matter(tmp_path):
    some = POOL.subset(np.arange(40))
    write_folder(some, tmp_path / "one")
    first = load_folder(tmp_path / "one", (SIDE, SIDE))
    for number, path in enumerate(sorted((tmp_path / "one").rglob("*.png"))):
        path.rename(path.with_name(f"{997 * number % 1000}.png"))
    again = load_folder(tmp_path / "one", (SIDE, SIDE))
    assert first.ids != again.ids

    def judging(images):
        return {pixels.tobytes() for pixels in images.read(by_content(images).validation)}

    assert judging(first) == judging(again) == judging(some) != set()


def test_classes_are_balanced_as_chance_makes_them():
    images = pictures(3000, seed=1)
    held = np.bincount(images.labels[by_content(images, 0.15, cap=3000, keep_duplicates=True).validation])
    assert np.abs(held - 150).max() < 4 * np.sqrt(1000 * 0.15 * 0.85)


def test_a_larger_share_holds_back_what_a_smaller_one_did_and_more():
    few, more = (set(by_content(POOL, share).validation.tolist()) for share in (0.1, 0.3))
    assert few < more


def test_of_one_scene_what_was_learnt_from_stays_and_does_not_judge():
    """Whatever comes first."""
    roles = by_content(POOL)
    for taught, judge in zip(roles.training[:5], roles.validation[:5], strict=True):
        pixels = POOL.read(np.arange(30, 60))
        pixels[3], pixels[8] = POOL.read([judge])[0], POOL.read([taught])[0]
        pixels[5] = np.clip(pixels[8].astype(int) + 1, 0, 255)  # as good as equal, with a role of its own
        labels = np.full(30, 0)
        labels[20:] = 1
        images = ImageSet.from_arrays(pixels, labels, CLASSES)
        for order in (np.arange(30), np.arange(30)[::-1]):
            found = by_content(images.subset(order))
            learnt, judging = ({int(order[row]) for row in rows} for rows in (found.training, found.validation))
            assert len({5, 8} & learnt) == 1 and not {5, 8} & judging and 3 in judging


@pytest.mark.parametrize("count", [2, 3, 4, 6, 9])
def test_of_a_handful_every_class_teaches_and_somebody_judges(count):
    for seed in range(20):
        images = pictures(count, seed)
        for share in (0.05, 0.5, 0.9):
            roles = by_content(images, share)
            taught = set(images.labels[roles.training].tolist())
            assert taught == set(images.labels.tolist())
            assert len(roles.validation) or count <= len(CLASSES)
            assert not set(roles.training.tolist()) & set(roles.validation.tolist())


def test_more_judges_than_are_needed_wait():
    whole, capped = by_content(POOL), by_content(POOL, cap=20)
    assert len(capped.validation) == 20 and set(capped.validation) < set(whole.validation)
    assert capped.training.tolist() == whole.training.tolist(), "they are not learnt from meanwhile"


def test_places_are_uniform_and_of_the_pixels_alone():
    places = as_places(POOL.content_digests()[:, 0])
    assert places.min() >= 0 and places.max() < 1 and abs(places.mean() - 0.5) < 0.06
    assert (as_places(POOL.subset([5, 3]).content_digests()[:, 0]) == places[[5, 3]]).all()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match="fraction"):
        by_content(POOL, share)
