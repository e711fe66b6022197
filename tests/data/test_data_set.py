import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sel.data.dataset import ImageSet, channel_statistics, intensity_std, normalise


@pytest.fixture
def images():
    pixels = np.arange(6 * 2 * 4 * 3, dtype=np.uint8).reshape(6, 2, 4, 3)
    return ImageSet.from_arrays(pixels, [0, 2, 0, 2, 2, 0], ["a", "b", "c"], list("uvwxyz"))


def test_a_set_from_arrays_has_their_labels_ids_and_counts(images):
    assert len(images) == 6 and images.size == (2, 4) and images.classes == ("a", "b", "c")
    assert images.labels.dtype == np.int64 and images.ids == tuple("uvwxyz")
    assert images.class_counts().tolist() == [3, 0, 3] and images.class_counts().dtype == np.int64
    assert repr(images) == "ImageSet(6 images 2x4, 3 classes)"
    unnamed = ImageSet.from_arrays(np.zeros((2, 4, 4, 3), np.uint8), [0, 0], ["a"])
    assert unnamed.ids == ("000000", "000001")


@pytest.mark.parametrize(
    ("shape", "dtype", "labels", "ids"),
    [
        ((2, 3, 4, 4), np.uint8, [0, 1], None),
        ((2, 4, 4, 3), np.float32, [0, 1], None),
        ((2, 4, 4, 3), np.uint8, [0], None),
        ((2, 4, 4, 3), np.uint8, [0, 2], None),
        ((2, 4, 4, 3), np.uint8, [0, -1], None),
        ((2, 4, 4, 3), np.uint8, [0, 1], ["a"]),
        ((2, 4, 4, 3), np.uint8, [[0, 1]], None),
    ],
)
def test_arrays_that_do_not_fit_are_refused(shape, dtype, labels, ids):
    with pytest.raises(ValueError):
        ImageSet.from_arrays(np.zeros(shape, dtype), labels, ["a", "b"], ids)


def test_read_gives_a_fresh_array(images):
    first = images.read([0, 1])
    first[:] = 0
    assert images.read([1])[0, 0, 0].tolist() == [24, 25, 26]
    assert images.read([]).shape == (0, 2, 4, 3)
    assert images.read(range(6)).shape == (6, 2, 4, 3)


def test_wrong_indices_are_refused(images):
    with pytest.raises(IndexError):
        images.read([6])
    for wrong in ([0.5], [True, False], [[0]], 3):
        with pytest.raises(ValueError, match="indices"):
            images.read(wrong)


def test_subsets_share_memory_and_compose(images):
    part = images.subset([5, 1, 3])
    assert part.ids == ("z", "v", "x") and part.labels.tolist() == [0, 2, 2] and part.classes == images.classes
    np.testing.assert_array_equal(part.subset([2, 0]).read([1, 0]), images.read([5, 3]))
    assert part._store is images._store
    assert len(images.subset([])) == 0


def test_fingerprint_tells_samples_order_and_labels(images):
    same = ImageSet.from_arrays(np.zeros((6, 2, 4, 3), np.uint8), images.labels, images.classes, images.ids)
    assert same.fingerprint() == images.fingerprint()
    others = [
        images.subset([0, 1]),
        images.subset([1, 0, 2, 3, 4, 5]),
        ImageSet.from_arrays(images.read(range(6)), [0, 2, 0, 2, 2, 1], images.classes, images.ids),
        ImageSet.from_arrays(images.read(range(6)), images.labels, ["a", "b", "d"], images.ids),
    ]
    assert len({images.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_map_keeps_everything_but_the_pixels(images):
    mapped = images.map(lambda pixels, ids: pixels + np.uint8(len(ids) > 0))
    assert mapped.fingerprint() == images.fingerprint()
    np.testing.assert_array_equal(mapped.read([2]), images.read([2]) + 1)


def test_importing_the_data_room_is_light():
    code = (
        "import sys;"
        "from edge_sel.data import builtin, cifar10, folder, shifts, split;"
        "print([name for name in ('PIL', 'torch', 'torchvision', 'onnxruntime') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


batches = hnp.arrays(np.uint8, st.tuples(st.integers(0, 5), st.integers(2, 9), st.integers(2, 9), st.just(3)))
unit = st.floats(0, 1)


@given(batches, st.tuples(unit, unit, unit), st.tuples(*[st.floats(0.05, 1)] * 3))
def test_normalised_images_are_channels_first_less_mean_over_std(images, mean, std):
    result = normalise(images, mean, std)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    expected = ((images / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_a_deviation_of_zero_is_refused():
    with pytest.raises(ValueError, match="std"):
        normalise(np.zeros((1, 2, 2, 3), np.uint8), [0.5] * 3, [0.2, 0.0, 0.2])


@given(batches)
def test_the_intensity_deviation_is_that_of_the_grey_image(images):
    grey = images @ np.array([0.299, 0.587, 0.114]) / 255
    result = intensity_std(images)
    assert result.dtype == np.float32 and result.shape == (len(images),)
    np.testing.assert_allclose(result, grey.std(axis=(1, 2)), atol=1e-5)


def test_the_intensity_deviation_of_half_black_half_white_is_a_half():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1, :2] = 255
    np.testing.assert_allclose(intensity_std(images), [0, 0.5], atol=1e-6)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.just(3), st.just(4), st.just(3))), st.integers(1, 5))
def test_channel_statistics_do_not_depend_on_the_batch_size(images, batch_size):
    image_set = ImageSet.from_arrays(images, np.zeros(len(images)), ["a"])
    mean, std = channel_statistics(image_set, batch_size=batch_size)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)) / 255, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(std, np.maximum(images.std(axis=(0, 1, 2)), 1) / 255, rtol=1e-4)


def test_channel_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no images"):
        channel_statistics(ImageSet.from_arrays(np.zeros((0, 4, 4, 3), np.uint8), [], ["a"]))
