"""Images of the server in a pack."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.errors import PackError
from edge_sel.pack.anchors import MOST, MOST_BYTES, choose_anchors, read_anchors, write_anchors
from edge_sel.pack.reader import builtin_pack

SIZE = (24, 16)


def pictures(count, classes=3, size=SIZE):
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 256, (count, size[0] // 8, size[1] // 8, 3)), 8, 1), 8, 2)
    names = [str(number) for number in range(classes)]
    return ImageSet.from_arrays(smooth.astype(np.uint8), rng.integers(0, classes, count), names)


def stored(images):
    files, labels = choose_anchors(images, np.random.default_rng(1))
    return write_anchors(files, labels, np.arange(len(labels)) % 2 == 0)


def test_what_was_written_is_read():
    images = pictures(40)
    found = read_anchors(stored(images), SIZE, images.classes)
    assert len(found.images) == 40 and found.known.tolist() == [number % 2 == 0 for number in range(40)]
    one, other = (
        sorted(zip(some.labels.tolist(), some.read(np.arange(40)).mean((1, 2, 3)).round(-1), strict=True))
        for some in (images, found.images)
    )
    assert np.allclose(one, other, atol=10), "JPEG changes a pixel a little"


def test_every_class_has_its_share():
    images = pictures(900, classes=7)
    files, labels = choose_anchors(images, np.random.default_rng(1))
    assert len(files) == MOST and np.bincount(labels).min() >= MOST // 7


def test_large_images_are_fewer():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 224, 224, 3)).astype(np.uint8)
    files, _ = choose_anchors(ImageSet.from_arrays(noise, np.zeros(20), ["a"]), rng)
    assert 0 < sum(map(len, files)) <= MOST_BYTES and len(files) < 20


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:50],
        lambda content: save({**load(content), "labels": np.full(40, 3)}),
        lambda content: save({**load(content), "labels": np.full(40, -1)}),
        lambda content: save({**load(content), "ends": np.arange(39)}),
        lambda content: save({**load(content), "ends": np.arange(40)}),
        lambda content: save({**load(content), "files": np.zeros(10**4, np.uint8)}),
        lambda content: save({"files": load(content)["files"]}),
        lambda content: stored(pictures(40, size=(32, 16))),
    ],
)
def test_anything_else_is_refused_in_one_line(damage):
    images = pictures(40)
    with pytest.raises(PackError) as caught:
        read_anchors(damage(stored(images)), SIZE, images.classes, "here")
    assert "\n" not in str(caught.value) and "here" in str(caught.value)


def test_the_builtin_pack_has_some():
    anchors = builtin_pack().anchors
    assert len(anchors.images) == MOST and anchors.images.classes == load_digits("test").classes
    assert anchors.known.mean() > 0.9, "its model knows these"
