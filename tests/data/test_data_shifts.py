import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.shifts import SHIFTS, apply_shift, downscale, smear, to_light, write_folder
from edge_sel.errors import SetupError, UsageError

names = pytest.mark.parametrize("name", sorted(SHIFTS))
batches = hnp.arrays(np.uint8, st.tuples(st.integers(0, 4), st.integers(1, 7), st.integers(1, 7), st.just(3)))


def photos(count=40, size=(16, 16)):
    """Smooth random pictures over the whole range."""
    coarse = np.random.default_rng(5).integers(0, 256, (count, 4, 4, 3))
    return coarse.repeat(size[0] // 4, 1).repeat(size[1] // 4, 2).astype(np.uint8)


@names
@given(images=batches, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_shift_keeps_shape_and_type_and_is_deterministic(name, images, seed):
    before = images.copy()
    result = SHIFTS[name](images, np.random.default_rng(seed))
    assert result.shape == images.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(result, SHIFTS[name](images, np.random.default_rng(seed)))


@pytest.mark.sampled(3)
@names
@given(order=st.lists(st.integers(0, 39), max_size=12), seed=st.integers(0, 3))
@settings(max_examples=8)
def test_a_shifted_subset_is_the_subset_of_the_shifted(name, order, seed):
    clean = ImageSet.from_arrays(photos(), np.arange(40) % 3, list("abc"))
    whole = apply_shift(name, clean, seed)
    part = apply_shift(name, clean.subset(order), seed)
    np.testing.assert_array_equal(part.read(range(len(order))), whole.read(order))
    assert whole.fingerprint() == clean.fingerprint()


@names
def test_seed_and_id_decide_the_shift(name):
    same = ImageSet.from_arrays(photos(1).repeat(3, 0), [0, 0, 0], ["a"])
    first, other = apply_shift(name, same, 0), apply_shift(name, same, 1)
    images = [*first.read([0, 1, 2]), *other.read([0, 1, 2])]
    assert len({image.tobytes() for image in images}) == 6


@names
def test_on_demand_sets_are_shifted_the_same(name, make_tree):
    root = make_tree({"a": 4, "b": 3})
    cached = apply_shift(name, load_folder(root, (8, 8)), 3)
    on_demand = apply_shift(name, load_folder(root, (8, 8), cache_bytes=400), 3)
    np.testing.assert_array_equal(on_demand.read([6, 0, 3]), cached.read([6, 0, 3]))
    np.testing.assert_array_equal(on_demand.subset([5, 2]).read([1, 0]), cached.read([2, 5]))
    twice = apply_shift(name, on_demand.subset([5, 2]), 4)
    np.testing.assert_array_equal(twice.read([1]), apply_shift(name, cached, 4).read([2]))


def test_low_light_is_severe_and_field_camera_mild():
    clean = photos().astype(float)
    kept = {}
    for name in ("low_light", "field_camera"):
        shifted = SHIFTS[name](photos(), np.random.default_rng(0)).astype(float)
        # contrast that is left, and noise in units of the picture's own contrast
        contrast, noise = [], []
        for before, after in zip(clean, shifted, strict=True):
            slope, offset = np.polyfit(before.ravel(), after.ravel(), 1)
            contrast.append(slope)
            noise.append((after - slope * before - offset).std() / slope / 255)
        kept[name] = (shifted.mean() / clean.mean(), np.mean(contrast), np.median(noise))
    assert 0.3 < kept["low_light"][0] < 0.5 and 0.3 < kept["low_light"][1] < 0.5
    assert 0.5 < kept["field_camera"][0] < 0.75 and kept["field_camera"][1] > 0.5
    assert kept["low_light"][2] > 0.06


def test_low_light_casts_blue_green():
    grey = np.full((200, 8, 8, 3), 200, np.uint8)
    red, green, blue = SHIFTS["low_light"](grey, np.random.default_rng(0)).mean(axis=(0, 1, 2))
    assert red < green and red < blue


def test_field_camera_light_falls_off_and_is_warm_or_cool():
    grey = np.full((200, 16, 16, 3), 200, np.uint8)
    shifted = SHIFTS["field_camera"](grey, np.random.default_rng(0)).astype(float)
    halves = np.abs(shifted[:, :8].mean((1, 2, 3)) - shifted[:, 8:].mean((1, 2, 3)))
    assert halves.max() > 15
    warmth = shifted[..., 0].mean((1, 2)) - shifted[..., 2].mean((1, 2))
    assert warmth.min() < -10 and warmth.max() > 10


def test_fog_hides_contrast_more_in_some_places():
    clean = photos(200, (32, 32))
    foggy = SHIFTS["fog"](clean, np.random.default_rng(0)).astype(float)
    assert 0.15 < (foggy.std((1, 2, 3)) / clean.std((1, 2, 3))).mean() < 0.5
    black = SHIFTS["fog"](np.zeros((200, 32, 32, 3), np.uint8), np.random.default_rng(0)).astype(float)
    corners = black[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(2)
    assert black.mean((1, 2, 3)).min() > 100 and (corners.max(1) - corners.min(1)).mean() > 5


def test_colour_casts_are_strong_and_go_either_way():
    grey = np.full((200, 8, 8, 3), 120, np.uint8)
    cast = SHIFTS["colour_cast"](grey, np.random.default_rng(0)).astype(float)
    warmth = cast[..., 0].mean((1, 2)) - cast[..., 2].mean((1, 2))
    assert np.abs(warmth).min() > 30 and 60 < (warmth > 0).sum() < 140
    np.testing.assert_array_equal(cast[:, 0, 0], cast[:, 5, 3])


def test_blur_spreads_a_point_and_noise_grows_with_light():
    dots = np.zeros((100, 33, 33, 3), np.uint8)
    dots[:, 16, 16] = 255
    blurred = to_light(SHIFTS["blur_noise"](dots, np.random.default_rng(0)))
    assert blurred[:, 16, 16].mean() < 0.35 and blurred[:, 13:20, 13:20].sum((1, 2, 3)).mean() > 3 * 0.4
    greys = [SHIFTS["blur_noise"](np.full((50, 9, 9, 3), v, np.uint8), np.random.default_rng(0)) for v in (40, 200)]
    dark, bright = (to_light(grey).std((1, 2, 3)).mean() for grey in greys)
    assert 1.5 * dark < bright < 0.15


def test_a_smear_keeps_the_light_and_follows_its_direction():
    light = np.zeros((2, 21, 21, 3), np.float32)
    light[:, 10, 10] = 1
    length, angle, radius = (np.array(v, np.float32).reshape(2, 1, 1, 1) for v in ([8, 0], [0, 0], [0.5, 3]))
    line, disc = smear(light, length, angle, radius)[..., 0]
    assert line.sum() == pytest.approx(1) and disc.sum() == pytest.approx(1)
    assert line[10].sum() == pytest.approx(1) and line[10, 6:15].min() > 0.08
    assert disc[10, 10] == disc[12, 10] == disc[10, 8] > 0 and disc[10, 14] == disc[13, 13] == 0


def test_jpeg_keeps_the_mean_and_loses_detail():
    clean = np.random.default_rng(1).integers(0, 256, (50, 32, 32, 3)).astype(np.uint8)
    packed = SHIFTS["jpeg"](clean, np.random.default_rng(0))
    assert abs(packed.mean() - clean.mean()) < 4 and packed.std() < 0.7 * clean.std()
    smooth = SHIFTS["jpeg"](photos(), np.random.default_rng(0)).astype(float)
    assert 3 < np.abs(smooth - photos()).mean() < 40


def test_the_picture_lies_somewhere_on_another_ground():
    marked = np.zeros((300, 32, 32, 3), np.uint8)
    marked[:] = (255, 0, 255)
    framed = SHIFTS["background"](marked, np.random.default_rng(0)).astype(int)
    inside = (framed[..., 0] > 250) & (framed[..., 1] < 5) & (framed[..., 2] > 250)
    assert inside.mean((1, 2)).min() > 0.25 and inside.mean((1, 2)).max() < 0.66
    centre = (inside.any(2) * np.arange(32)).sum(1) / inside.any(2).sum(1)
    assert centre.min() < 12 and centre.max() > 19
    assert len({tuple(image[~seen].mean(0).round()) for image, seen in zip(framed, inside, strict=True)}) > 250


def test_a_picture_shrinks_about_its_own_centre():
    light = np.zeros((1, 20, 20, 3), np.float32)
    light[:, 5:15] = 1
    half, low, high = (np.full((1, 1, 1, 1), v, np.float32) for v in (0.5, 0.0, 1.0))
    small, cover = downscale(light, half, low, high)
    assert small.shape == light.shape and cover.shape == (1, 20, 20, 1)
    assert cover[0, :9, 11:].min() == 1 and cover[0, 11:].max() == 0 and cover[0, :, :9].max() == 0
    np.testing.assert_allclose(small[0, [0, 4, 5, 9], 15, 0], [0, 1, 1, 0], atol=0.01)


def test_an_unknown_shift_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"no field shift named hail \(one of low_light, field_camera, fog, "):
        apply_shift("hail", load_digits("test"), 0)


# --- write_folder


def test_written_folders_read_back(tmp_path, make_tree):
    root = make_tree({"a": 2, "b/deep": 2})
    original = load_folder(root, (8, 8))
    write_folder(original, tmp_path / "out")
    again = load_folder(tmp_path / "out", (8, 8))
    assert again.ids == ("a/000.png", "a/001.png", "b/deep_000.png", "b/deep_001.png")
    np.testing.assert_array_equal(again.read(range(4)), original.read(range(4)))
    digits = load_digits("test").subset(range(5))
    write_folder(digits, tmp_path / "digits")
    assert len(load_folder(tmp_path / "digits", (16, 16))) == 5


def test_names_that_collide_are_numbered(tmp_path):
    images = ImageSet.from_arrays(photos(4), [0] * 4, ["a"], ["a/x.jpg", "a/x.png", "a/x-2.gif", "a/..png"])
    write_folder(images, tmp_path / "out")
    written = sorted(path.name for path in (tmp_path / "out" / "a").iterdir())
    assert len(written) == 4 and {"x.png", "x-2.png"} < set(written)
    assert not any(name.startswith(".") for name in written)


def test_nothing_is_overwritten(tmp_path):
    images = ImageSet.from_arrays(photos(1), [0], ["a"])
    (tmp_path / "out").mkdir()
    write_folder(images, tmp_path / "out")
    before = (tmp_path / "out" / "a" / "000000.png").read_bytes()
    with pytest.raises(UsageError, match="not empty"):
        write_folder(images, tmp_path / "out")
    assert (tmp_path / "out" / "a" / "000000.png").read_bytes() == before
    with pytest.raises(UsageError, match="is a file"):
        write_folder(images, tmp_path / "out" / "a" / "000000.png")


@pytest.mark.parametrize("name", ["..", "../evil", "a/b", "", " ", ".hidden", "a\\b"])
def test_class_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="cannot name a folder"):
        write_folder(ImageSet.from_arrays(photos(1), [0], [name]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SetupError, match="cannot write images"):
        write_folder(ImageSet.from_arrays(photos(1), [0], ["a"]), tmp_path / "file" / "out")
