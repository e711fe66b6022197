"""Where features are kept: rows come back by their key, and a damaged or foreign file is not used."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from edge_sel.edge.features.cache import FILE
from edge_sel.edge.features.store import KEY_BYTES, FileFeatureStore, MemoryFeatureStore
from tests.edge.sessions import damage

SHAPE = (2, 3)
RECORD = 8 + 16 + 2 * 6
KEY = b"k" * KEY_BYTES


def written(folder, count=5, key=KEY):
    """The rows of a file that was written and closed."""
    store = FileFeatureStore(folder / FILE, 8, SHAPE, key)
    rows = np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float16)
    store.write(np.arange(count), rows)
    store.close(keep=True)
    return rows


@pytest.fixture
def reopened():
    """``reopened(folder)``: the store of the file there; closed after the test."""
    with ExitStack() as stack:

        def make(folder):
            store = FileFeatureStore(folder / FILE, 8, SHAPE, KEY)
            stack.callback(store.close, keep=True)
            return store

        yield make


@pytest.mark.parametrize(
    "make", [lambda path: MemoryFeatureStore(8, SHAPE), lambda path: FileFeatureStore(path, 8, SHAPE, KEY)]
)
def test_rows_come_back_by_their_key(make, tmp_path):
    store = make(tmp_path / FILE)
    rows = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float16)
    store.write(np.array([5, 2]), rows[[5, 2]])
    store.write(np.array([7]), rows[[7]])
    store.write(np.array([], np.int64), rows[:0])
    found, there = store.read(np.array([2, 3, 7, 5]))
    assert there.tolist() == [True, False, True, True] and store.there().sum() == 3
    np.testing.assert_array_equal(found[there], rows[[2, 7, 5]])
    store.close(keep=False)
    assert not (tmp_path / FILE).exists()


def test_a_file_is_used_again(reopened, tmp_path):
    rows = written(tmp_path)
    store = reopened(tmp_path)
    found, there = store.read(np.arange(8))
    assert there.tolist() == [True] * 5 + [False] * 3
    np.testing.assert_array_equal(found[:5], rows)
    store.write(np.array([6]), rows[:1])
    np.testing.assert_array_equal(store.read(np.array([4, 6]))[0], rows[[4, 0]])


@pytest.mark.parametrize("at", range(KEY_BYTES + RECORD, KEY_BYTES + 2 * RECORD))
def test_a_damaged_record_is_not_used(at, reopened, tmp_path):
    rows = written(tmp_path)
    damage(tmp_path / FILE, at)
    found, there = reopened(tmp_path).read(np.arange(8))
    assert not there[1] and not there[5:].any() and there.sum() >= 3  # a wrong key hides another record
    np.testing.assert_array_equal(found[there], rows[np.flatnonzero(there)])


@pytest.mark.parametrize("left", [0, 10, KEY_BYTES, KEY_BYTES + 5, KEY_BYTES + 3 * RECORD - 1])
def test_of_a_truncated_file_the_whole_records_are_used(left, reopened, tmp_path):
    rows = written(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:left])
    store = reopened(tmp_path)
    whole = max(0, (left - KEY_BYTES) // RECORD)
    assert store.read(np.arange(8))[1].sum() == whole
    store.write(np.array([7]), rows[:1])
    np.testing.assert_array_equal(store.read(np.array([7]))[0], rows[:1])
    store.close(keep=True)
    assert reopened(tmp_path).read(np.arange(8))[1].sum() == whole + 1


@pytest.mark.parametrize("foreign", [b"other" * 100, b"o" * KEY_BYTES, b""])
def test_a_foreign_file_is_begun_anew(foreign, reopened, tmp_path):
    written(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(foreign + content[KEY_BYTES:])
    store = reopened(tmp_path)
    assert not store.there().any() and (tmp_path / FILE).read_bytes() == b"k" * KEY_BYTES


def test_records_of_other_features_do_not_pass_under_this_key(reopened, tmp_path):
    """As after a power cut that left a new beginning before old records."""
    written(tmp_path, key=b"o" * KEY_BYTES)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(b"k" * KEY_BYTES + content[KEY_BYTES:])
    assert not reopened(tmp_path).read(np.arange(8))[1].any()
