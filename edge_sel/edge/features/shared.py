"""Features that outlive a run: one SQLite file for all runs of this user, least recently used first to go.

The key of a row is a hash of the image's pixels, of whether it is mirrored, and of all that computes its features: the
graph, the weights, the statistics, the precision, the runtime. Each row has a hash of its content: what is damaged is
computed anew. Several processes may use the file at once; who finds it busy for long, or without room, does without.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.files import refuse_link

FILE = "features.sqlite"
BUSY_S = 2.0
"""How long to wait for another process."""
KEEP = 0.9
"""Share of the limit that is left where it was passed."""
_AT_ONCE = 500
_KEY, _HASH = 16, 16
_TABLE = "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, used INTEGER, hash BLOB, row BLOB)"
_BY_USE = "CREATE INDEX IF NOT EXISTS by_use ON features (used)"


class SharedFeatures:
    """The file, opened; it never raises: without it features are computed.

    Args:
        folder: of the file; made where it is missing, for this user alone.
        limit_mb: largest size of all rows, in units of 2^20 bytes.

    Attributes:
        found: rows that were there; ``added``: that were written.
        stopped: why nothing is read or written any more; empty while it works.
    """

    def __init__(self, folder: Path, limit_mb: int) -> None:
        self.folder, self._limit = folder, limit_mb * 2**20
        self.found = self.added = 0
        self.stopped = ""
        self._connection: sqlite3.Connection | None = None
        self._turn = self._size = 0
        """Number of this opening: what was used last has the largest. No clock is asked, as clocks jump."""
        with self._working(anew=True):
            self._open()

    def close(self) -> None:
        """Let go of the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def as_dict(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {"folder": str(self.folder), "found": self.found, "added": self.added, "stopped": self.stopped or None}

    def read(self, keys: Sequence[bytes], shape: tuple[int, ...], kind: Any) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n, …] of these keys, and which of them were there [n] bool; the others hold zeros."""
        rows, there = np.zeros((len(keys), *shape), kind), np.zeros(len(keys), bool)
        size = rows[:1].nbytes if len(keys) else 0
        places = {key: place for place, key in enumerate(keys)}
        with self._working():
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                found = self._ask(f"SELECT key, hash, row FROM features WHERE key IN ({marks})", part)
                used = []
                for key, digest, content in found:
                    if isinstance(content, bytes) and len(content) == size and digest == _hash(key, content):
                        rows[places[key]] = np.frombuffer(content, kind).reshape(shape)
                        there[places[key]] = True
                        used.append(key)
                if used:
                    marks = ",".join("?" * len(used))
                    self._ask(f"UPDATE features SET used = ? WHERE key IN ({marks})", (self._turn, *used))
        self.found += int(there.sum())
        return rows, there

    def write(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Keep these rows, in place of damaged ones with their keys."""
        with self._working():
            contents = [row.tobytes() for row in rows]
            entries = [(key, self._turn, _hash(key, row), row) for key, row in zip(keys, contents, strict=True)]
            if (connection := self._connection) is not None:
                with connection:
                    connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", entries)
                self.added += len(entries)
                self._size += sum(map(len, contents))
                if self._size > self._limit:
                    self._make_room(connection)

    def _make_room(self, connection: sqlite3.Connection) -> None:
        self._size = self._sum()
        with connection:
            oldest = connection.execute("SELECT rowid, length(row) FROM features ORDER BY used, rowid").fetchall()
            for rowid, size in oldest:
                if self._size <= KEEP * self._limit:
                    break
                connection.execute("DELETE FROM features WHERE rowid = ?", (rowid,))
                self._size -= size

    def _sum(self) -> int:
        return int(self._ask("SELECT coalesce(sum(length(row)), 0) FROM features")[0][0])

    def _ask(self, question: str, values: Sequence[Any] = ()) -> list[Any]:
        if self._connection is None:
            return []
        with self._connection:
            return self._connection.execute(question, tuple(values)).fetchall()

    def _open(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / FILE
        _make_private(path)
        self._connection = sqlite3.connect(path, timeout=BUSY_S)
        self._ask("PRAGMA synchronous = OFF")  # what a power cut damages is computed anew
        self._ask(_TABLE)
        self._ask(_BY_USE)
        self._turn = 1 + int(self._ask("SELECT coalesce(max(used), 0) FROM features")[0][0])
        self._size = self._sum()

    @contextmanager
    def _working(self, *, anew: bool = False) -> Iterator[None]:
        """Whatever is wrong ends its use. A file that is no database, or damaged, goes; ``anew`` makes another."""
        try:
            yield
        except (sqlite3.OperationalError, OSError, MemoryError) as error:  # busy, full, not writable
            self._stop(error)
        except (sqlite3.Error, TypeError, ValueError, OverflowError, IndexError) as error:
            self._stop(error)
            try:
                (self.folder / FILE).unlink()
                if anew:
                    self.stopped = ""
                    self._open()
            except (sqlite3.Error, OSError, TypeError, ValueError, OverflowError, IndexError) as again:
                self._stop(again)

    def _stop(self, error: Exception) -> None:
        self.close()
        self.stopped = getattr(error, "strerror", None) or str(error) or type(error).__name__


class KnownFeatures:
    """The rows of one computation, for the images of one set.

    Args:
        shared: the file.
        computed_by: 32 bytes, a hash of all that the features depend on but the image.
        images: uint64 [N, 2], of each image a hash of its pixels.
        kind: of the numbers.
    """

    def __init__(self, shared: SharedFeatures, computed_by: bytes, images: np.ndarray, kind: Any) -> None:
        self._shared, self._by, self._images, self._kind = shared, computed_by, images, kind

    def read(self, rows: np.ndarray, mirrored: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Features [n, …] of these images, and which of them were there."""
        return self._shared.read(self._keys(rows, mirrored), shape, self._kind)

    def write(self, rows: np.ndarray, mirrored: np.ndarray, features: np.ndarray) -> None:
        """Keep them."""
        self._shared.write(self._keys(rows, mirrored), features.astype(self._kind, copy=False))

    def _keys(self, rows: np.ndarray, mirrored: np.ndarray) -> list[bytes]:
        kind = np.dtype(self._kind).char.encode()
        return [
            hashlib.blake2b(self._images[row].tobytes() + bytes([flip]) + kind, digest_size=_KEY, key=self._by).digest()
            for row, flip in zip(rows.tolist(), mirrored.tolist(), strict=True)
        ]


def _make_private(path: Path) -> None:
    """The file, made for this user alone where it is missing.

    Raises:
        OSError: a link or something else than a regular file is there.
    """
    refuse_link(path)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
    finally:
        os.close(file)


def _hash(key: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH, key=key).digest()
