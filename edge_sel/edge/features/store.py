"""Where features are kept: rows of float16 in memory, or in a file that a resumed run can use again.

A record of the file is the row's number, a keyed hash of that number and of the row, and the row. Whatever was not
written whole, or was damaged later, fails its hash at the time of reading and is computed again; so nothing has to be
forced onto the disk in any order. The key stands at the file's beginning: of other features no record is looked at.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np

from edge_sel.files import open_no_link, regular_size

KEY_BYTES = 32
MOST_COPIES = 4
"""Records per row that are looked at: a damaged one is written again, but a longer file holds something else."""
_ROW, _HASH = 8, 16
_HEADER = _ROW + _HASH


class MemoryFeatureStore:
    """A row of features per key 0 … N-1, in this process's memory, which the system hands out as rows come in."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self._rows = np.empty((count, *shape), np.float16)
        self._there = np.zeros(count, bool)

    def there(self) -> np.ndarray:
        """Of which keys there seems to be a row [N]; only reading tells for certain."""
        there: np.ndarray = self._there.copy()
        return there

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n, …] float16 of these keys, and which of them were there [n]; the others hold anything."""
        return self._rows[keys], self._there[keys]

    def write(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Keep these rows."""
        self._rows[keys] = rows
        self._there[keys] = True

    def close(self, *, keep: bool) -> None:
        """Let go of everything: memory does not outlive the process."""
        self._rows, self._there = self._rows[:0].copy(), self._there[:0]


class FileFeatureStore:
    """The same in a file, each record behind the last.

    It is read and written, not mapped: pages of a map count as the process's memory, and a full or failing disk would
    end the process where here it is an OSError.

    Args:
        path: the file; what an earlier process has left there under the same ``key`` is used.
        count: number of keys.
        shape: of a row.
        key: ``KEY_BYTES`` bytes, a hash of all that the features depend on.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, ...], key: bytes) -> None:
        self._path, self._shape, self._key = path, shape, key
        self._bytes = _HEADER + row_bytes(shape)
        self._places = np.full(count, -1, np.int64)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_no_link(path, "r+b", buffering=0)
        if self._file.read(KEY_BYTES) == key:
            self._end = self._find(count)
        else:
            self._file.truncate(0)
            self._put(0, key)
            self._end = KEY_BYTES

    def there(self) -> np.ndarray:
        """What was written, by an earlier process too."""
        return np.asarray(self._places >= 0)

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the file, and check each record."""
        rows = np.zeros((len(keys), *self._shape), np.float16)
        found = np.zeros(len(keys), bool)
        for at, key in enumerate(keys.tolist()):
            if self._places[key] < 0:
                continue
            with suppress(OSError):  # a block that cannot be read is a row that is not there
                self._file.seek(int(self._places[key]))
                record = self._file.read(self._bytes)
                content = record[_HEADER:]
                if record[_ROW:_HEADER] == self._hash(key, content):
                    rows[at] = np.frombuffer(content, np.float16).reshape(self._shape)
                    found[at] = True
        self._places[keys[~found]] = -1
        return rows, found

    def write(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Keep these rows; OSError where there is no room."""
        records = []
        for key, row in zip(keys.tolist(), rows, strict=True):
            content = row.tobytes()
            records.append(key.to_bytes(_ROW, "little") + self._hash(key, content) + content)
        self._put(self._end, b"".join(records))
        self._places[keys] = self._end + self._bytes * np.arange(len(keys))
        self._end += self._bytes * len(keys)

    def close(self, *, keep: bool) -> None:
        """Close the file; with ``keep`` it stays for the process that resumes the run."""
        self._file.close()
        if not keep:
            discard(self._path)

    def _find(self, count: int) -> int:
        """Note where the rows are; the end of the last whole record."""
        end = self._file.seek(0, 2)
        whole = min((end - KEY_BYTES) // self._bytes, MOST_COPIES * count)
        for place in range(KEY_BYTES, KEY_BYTES + whole * self._bytes, self._bytes):
            self._file.seek(place)
            key = int.from_bytes(self._file.read(_ROW), "little")
            if key < count:
                self._places[key] = place
        return KEY_BYTES + whole * self._bytes

    def _put(self, place: int, content: bytes) -> None:
        self._file.seek(place)
        left = memoryview(content)
        while len(left):
            left = left[self._file.write(left) :]

    def _hash(self, key: int, content: bytes) -> bytes:
        salt = key.to_bytes(_ROW, "little")
        return hashlib.blake2b(content, digest_size=_HASH, key=self._key, salt=salt).digest()


FeatureStore = MemoryFeatureStore | FileFeatureStore


def open_store(
    path: Path | None,
    count: int,
    shape: tuple[int, ...],
    key: Callable[[], bytes],
    *,
    memory_mb: int,
    disk_mb: int,
    outlive: bool = False,
) -> FeatureStore | None:
    """A store in memory up to ``memory_mb``, else in a file up to ``disk_mb`` and half of the free disk, else none.

    A file that a stopped process left at ``path`` is used again if it has the same key, and removed if no file is
    wanted.

    Args:
        path: of the file; None for none.
        count: number of keys.
        shape: of a row.
        key: gives ``KEY_BYTES`` bytes, a hash of all that the features depend on.
        memory_mb: most memory, in units of 2^20 bytes.
        disk_mb: most disk, likewise.
        outlive: rather in a file, as this process is likely to be killed.
    """
    store: FeatureStore | None = None
    size = count * row_bytes(shape)
    fits = size <= memory_mb * 2**20
    if path is not None and size <= disk_mb * 2**20 and (outlive or not fits):
        store = _file_store(path, count, shape, key())
    if store is None and fits:
        store = MemoryFeatureStore(count, shape)
    if not isinstance(store, FileFeatureStore):
        discard(path)
    return store


def _file_store(path: Path, count: int, shape: tuple[int, ...], key: bytes) -> FileFeatureStore | None:
    """A file, if it leaves half of the free disk alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = regular_size(path) if path.exists() else 0
        if count * row_bytes(shape) <= there + shutil.disk_usage(path.parent).free // 2:
            return FileFeatureStore(path, count, shape, key)
    except OSError:
        pass
    return None


def row_bytes(shape: tuple[int, ...]) -> int:
    """What the features of one image take."""
    return 2 * prod(shape)


def discard(path: Path | None) -> None:
    """Remove the file of a store, if there is one."""
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)
