"""What a set of images looks like, in numbers: the same for the same look, another for another, and no image."""

import json
import os
import tracemalloc

import numpy as np
import pytest

from edge_sel.data import signature
from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.data.shifts import apply_shift
from edge_sel.data.signature import FORMAT, IMAGES, LENGTH, measure, read_signature, take_signature, write_signature
from edge_sel.errors import BadInputError


def random_images(count=40, size=(9, 11), seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return ImageSet.from_arrays(pixels, np.arange(count) % 2, ("a", "b"))


def distance(one, other, unit):
    return float(np.sqrt((((one - other) / unit) ** 2).mean()))


def test_other_images_of_one_place_look_alike_and_another_place_does_not():
    def seen(part, shift):
        images = load_digits(part)
        return measure(apply_shift(shift, images, seed=1).read(np.arange(150)))

    field = {shift: seen("field", shift) for shift in ("low_light", "fog", "blur_noise", "colour_cast")}
    unit = np.std(list(field.values()), axis=0) + 1e-3
    for shift in field:
        other = seen("test", shift)
        nearest = min(field, key=lambda name: distance(field[name], other, unit))
        assert nearest == shift


@pytest.mark.parametrize("size", [(6, 6), (7, 12), (32, 32)])
def test_every_size_gives_as_many_finite_numbers(size):
    assert measure(random_images(5, size).read(np.arange(5))).shape == (LENGTH,)
    for constant in (0, 255):
        values = measure(np.full((1, *size, 3), constant, np.uint8))
        assert values.shape == (LENGTH,) and np.isfinite(values).all()


def test_brightness_stands_in_it_and_the_order_of_images_does_not():
    images = random_images(20).read(np.arange(20))
    assert measure(images)[:3] == pytest.approx(images.mean((0, 1, 2)) / 255, rel=1e-5)
    np.testing.assert_allclose(measure(images), measure(images[::-1].copy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 37])
def test_percentiles_are_those_of_all_pixels(count):
    pixels = random_images(count, (7, 9), seed=count).read(np.arange(count)) // 3
    expected = np.percentile(pixels.astype(float) / 255, (2, 25, 50, 75, 98), axis=(0, 1, 2))
    np.testing.assert_allclose(measure(pixels)[6:21].reshape(5, 3), expected, atol=1e-7)


@pytest.mark.parametrize("pixels_at_once", [1, 5 * 99, 10**9])
def test_the_numbers_do_not_depend_on_how_many_images_are_filtered_at_once(pixels_at_once, monkeypatch):
    images = random_images(23).read(np.arange(23))
    whole = measure(images)
    monkeypatch.setattr(signature, "_AT_ONCE", pixels_at_once)
    np.testing.assert_allclose(measure(images), whole, rtol=1e-5, atol=1e-6)


def test_large_images_do_not_take_much_memory():
    """Of 32 images at once the filters alone would take 170 MB."""
    pixels = np.zeros((32, 224, 224, 3), np.uint8)
    tracemalloc.start()
    measure(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_written_and_read_back_it_is_a_kilobyte_of_numbers(tmp_path):
    images = random_images(IMAGES + 10, (8, 8))
    taken = take_signature(images, np.random.default_rng(0))
    path = tmp_path / "place.json"
    write_signature(path, taken)
    read = read_signature(path)
    assert read.images == IMAGES and read.size == (8, 8) and path.stat().st_size < 1500
    np.testing.assert_allclose(read.values, taken.values, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "edge-sel-signature-9"}, {"values": [1.0, 2.0]}, {"values": "none"}, {"size": [8]},
        {"values": [float("nan")] * LENGTH}, {"images": None},
        {"size": [float("inf"), 8]}, {"values": [10**400] * LENGTH},
    ],
)  # fmt: skip
def test_what_is_no_signature_is_refused_in_a_line(change, tmp_path):
    path = tmp_path / "place.json"
    write_signature(path, take_signature(random_images(), np.random.default_rng(0)))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInputError, match="not a signature"):
        read_signature(path)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(BadInputError, match="cannot be read"):
        read_signature(tmp_path / "nothing.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInputError, match="not a signature"):
        read_signature(tmp_path / "bytes.json")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 60_000, b'{"format": "edge-sel-signature-1", "format": "edge-sel-signature-1"}', b"x" * 100_000,
        json.dumps({"format": FORMAT, "size": [16, 16], "images": 9, "values": [-1e308] * LENGTH}).encode(),
        json.dumps({"format": FORMAT, "size": [16, 10**400], "images": 9, "values": [0.0] * LENGTH}).encode(),
        json.dumps({"format": FORMAT, "size": [16, 16], "images": -1, "values": [0.0] * LENGTH}).encode(),
    ],
    ids=["deep", "a key twice", "large", "huge values", "huge size", "no images"],
)  # fmt: skip
def test_what_a_stranger_sends_is_bounded(content, tmp_path):
    (tmp_path / "place.json").write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        read_signature(tmp_path / "place.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_has_no_end_is_not_opened(kind, tmp_path):
    place = tmp_path / "place.json"
    os.mkfifo(place) if kind == "pipe" else place.symlink_to("/dev/zero")
    with pytest.raises(BadInputError, match="not a regular file"):
        read_signature(place)
