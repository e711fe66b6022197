import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import channel_statistics, intensity_std, normalise

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
