"""The records of a home: one SQLite file with the images that were seen, their labels, and what was made of them.

Each image counts once: its line and the counters change in one transaction. Labels are only ever added; one that is
taken back is marked. Every commit is on the disk before the call returns.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge_sel.errors import BadInputError, SetupError
from edge_sel.files import refuse_link

FILE = "watch.sqlite"
FORMAT = 1
BUSY_S = 20.0
MOST_LINES = 1_000_000
"""Of images that were not kept; older ones go."""
_TABLES = """
CREATE TABLE IF NOT EXISTS images (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, mtime_ns INTEGER NOT NULL, size INTEGER NOT NULL,
    seen_s REAL, class TEXT, probability REAL, novelty REAL, model INTEGER, digest INTEGER, file TEXT,
    UNIQUE (source, mtime_ns, size));
CREATE INDEX IF NOT EXISTS kept ON images (file) WHERE file IS NOT NULL;
CREATE INDEX IF NOT EXISTS kept_pixels ON images (digest) WHERE file IS NOT NULL;
CREATE TABLE IF NOT EXISTS features (image INTEGER PRIMARY KEY, computed_by BLOB, row BLOB);
CREATE TABLE IF NOT EXISTS labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT, image INTEGER NOT NULL, class TEXT, person TEXT, at_s REAL,
    undone INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS labels_of ON labels (image);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS looks (
    number INTEGER PRIMARY KEY, labels INTEGER, images INTEGER, gain REAL, p REAL, level REAL, why TEXT, model INTEGER,
    at_s REAL);
CREATE TABLE IF NOT EXISTS fits (labels INTEGER PRIMARY KEY, right INTEGER, images INTEGER);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT);
"""


class Seen(NamedTuple):
    """An image as it arrived, and what the model in service said of it."""

    source: str
    """Where it came from, such as its path."""
    mtime_ns: int
    size: int
    """Bytes."""
    seen_s: float
    """Unix seconds, for people."""
    label: str
    """The class; empty of what is no image."""
    probability: float | None
    novelty: float | None
    """Predictive variance as a share of what is usual for the server's images; see ``Observer``."""
    model: int
    """Number of the model in service."""
    digest: int
    """Hash of the pixels, 64 bits."""
    file: str | None = None
    """Relative to the home, of an image that was kept."""
    row: bytes | None = None
    """Its features, float16; ``computed_by`` says what computed them."""
    computed_by: bytes | None = None


class KeptImage(NamedTuple):
    """An image that was kept for a human."""

    number: int
    file: str
    digest: int
    guess: str
    novelty: float


class Label(NamedTuple):
    """What a person said of an image; ``name`` is None for none of the classes."""

    image: int
    name: str | None
    person: str


class Records:
    """The file, opened; any thread may use it.

    Args:
        folder: the home.

    Raises:
        BadInputError: it is damaged, or of another version.
        SetupError: it cannot be opened or made.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / FILE, threading.RLock()
        try:
            refuse_link(self._path)
            self._connection = sqlite3.connect(
                self._path, timeout=BUSY_S, check_same_thread=False, isolation_level=None
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA wal_autocheckpoint = 256")
            version = int(self._ask("PRAGMA user_version")[0][0])
            if version not in (0, FORMAT):
                raise BadInputError(
                    f"records of version {version}", where=self._path, fix="take the edge-sel that made it"
                )
            with self.changing():
                for statement in _TABLES.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.OperationalError as error:
            raise SetupError(f"the records cannot be opened ({error})", where=self._path) from error
        except OSError as error:
            raise SetupError(f"the records cannot be opened ({error.strerror})", where=self._path) from error
        except sqlite3.DatabaseError as error:
            raise BadInputError(f"the records are damaged ({error})", where=self._path) from error

    def check(self) -> None:
        """Look whether the file is whole.

        Raises:
            BadInputError: it is not.
        """
        try:
            found = self._ask("PRAGMA quick_check(1)")
        except sqlite3.DatabaseError as error:
            raise BadInputError(f"the records are damaged ({error})", where=self._path) from error
        if found != [("ok",)]:
            raise BadInputError("the records are damaged", where=self._path)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock, suppress(sqlite3.Error):
            self._connection.close()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """All or nothing of what is done inside; within another such block it is part of that."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # of a full disk SQLite has rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise

    def _ask(self, question: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(question, values).fetchall()

    # Images

    def unknown(self, files: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        """Those of (source, mtime_ns, size) that were not seen yet."""
        question = "SELECT 1 FROM images WHERE source = ? AND mtime_ns = ? AND size = ?"
        return [file for file in files if not self._ask(question, file)]

    def add(self, images: Iterable[Seen], counters: Mapping[str, int]) -> list[int]:
        """Write the lines of images, and count; returns their numbers, 0 of one that is there already."""
        numbers = []
        with self.changing():
            for image in images:
                values = (*image[:5], image.probability, image.novelty, image.model, _signed(image.digest), image.file)
                names = "source, mtime_ns, size, seen_s, class, probability, novelty, model, digest, file"
                marks = ", ".join("?" * len(values))
                done = self._connection.execute(f"INSERT OR IGNORE INTO images ({names}) VALUES ({marks})", values)
                number = int(done.lastrowid or 0) if done.rowcount else 0
                numbers.append(number)
                if number and image.row is not None:
                    self._put_row(number, image.row, image.computed_by or b"")
            for name, more in counters.items():
                self.count(name, more)
        return numbers

    def count(self, name: str, more: int = 1) -> None:
        """Add to a counter."""
        question = "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
        with self.changing():
            self._ask(question, (name, more))

    def counters(self) -> dict[str, int]:
        """All of them."""
        return dict(self._ask("SELECT name, value FROM counters ORDER BY name"))

    def kept(self) -> list[KeptImage]:
        """Images that were kept, labelled or not, the oldest first."""
        rows = self._ask("SELECT id, file, digest, class, novelty FROM images WHERE file IS NOT NULL ORDER BY id")
        return [KeptImage(row[0], row[1], _unsigned(row[2]), row[3], row[4]) for row in rows]

    def repeats(self, digest: int) -> tuple[str, float, float] | None:
        """Class, probability and novelty of a kept image with these pixels; None where there is none."""
        question = "SELECT class, probability, novelty FROM images WHERE digest = ? AND file IS NOT NULL LIMIT 1"
        found = self._ask(question, (_signed(digest),))
        return tuple(found[0]) if found else None

    def move(self, number: int, file: str | None) -> None:
        """The image is at another place in the home now; None: it was let go, and its features with it."""
        with self.changing():
            self._ask("UPDATE images SET file = ? WHERE id = ?", (file, number))
            if file is None:
                self._ask("DELETE FROM features WHERE image = ?", (number,))

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """Of every image: number, source, Unix seconds, class, probability, novelty, model, file, label."""
        last = 0
        while True:
            rows = self._ask(
                "SELECT id, source, seen_s, class, probability, novelty, model, file, (SELECT l.class FROM labels l "
                "WHERE l.image = images.id AND NOT undone ORDER BY l.id DESC LIMIT 1) FROM images WHERE id > ? "
                "ORDER BY id LIMIT 1000", (last,),
            )  # fmt: skip
            if not rows:
                return
            yield from rows
            last = rows[-1][0]

    def forget_lines(self) -> None:
        """Of images that were not kept the oldest lines go where there are too many."""
        with self.changing():
            self._ask("DELETE FROM images WHERE file IS NULL AND id <= (SELECT max(id) FROM images) - ?", (MOST_LINES,))

    # Features

    def rows(self, numbers: Sequence[int], computed_by: bytes, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Features float16 [n, F] of these images, and which of them are there [n] bool."""
        made, there = np.zeros((len(numbers), width), np.float16), np.zeros(len(numbers), bool)
        for place, number in enumerate(numbers):
            found = self._ask("SELECT row FROM features WHERE image = ? AND computed_by = ?", (number, computed_by))
            if found and len(found[0][0]) == 2 * width:
                made[place], there[place] = np.frombuffer(found[0][0], np.float16), True
        return made, there

    def put_rows(self, numbers: Sequence[int], rows: np.ndarray, computed_by: bytes) -> None:
        """Keep features float16 [n, F]."""
        with self.changing():
            for number, row in zip(numbers, rows, strict=True):
                self._put_row(number, row.astype(np.float16).tobytes(), computed_by)

    def _put_row(self, number: int, row: bytes, computed_by: bytes) -> None:
        self._ask("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", (number, computed_by, row))

    # Labels

    def add_label(self, image: int, name: str | None, person: str, at_s: float) -> int:
        """Add what a person said; its number."""
        with self.changing():
            self._ask(
                "INSERT INTO labels (image, class, person, at_s) VALUES (?, ?, ?, ?)", (image, name, person, at_s)
            )
            self.count("labels")
            return int(self._ask("SELECT last_insert_rowid()")[0][0])

    def undo(self, person: str) -> int | None:
        """Take back the latest label of this person; the image that it was of, None where there is none."""
        with self.changing():
            question = "SELECT id, image FROM labels WHERE person = ? AND NOT undone ORDER BY id DESC LIMIT 1"
            if not (found := self._ask(question, (person,))):
                return None
            self._ask("UPDATE labels SET undone = 1 WHERE id = ?", (found[0][0],))
            self.count("undone")
            return int(found[0][1])

    def labels(self) -> list[Label]:
        """All that were not taken back, of images that are there, in the order in which they were given."""
        question = (
            "SELECT l.image, l.class, l.person FROM labels l JOIN images i ON i.id = l.image "
            "WHERE NOT l.undone AND i.file IS NOT NULL ORDER BY l.id"
        )
        return [Label(*row) for row in self._ask(question)]

    def latest_label(self) -> int:
        """A number that changes with every label and every one that is taken back."""
        return int(self._ask("SELECT coalesce(max(id), 0) + coalesce(sum(undone), 0) * 1000000007 FROM labels")[0][0])

    def image_of(self, source: str) -> int | None:
        """The latest image from this place, or with this file in the home; None where there is none."""
        question = (
            "SELECT id FROM images WHERE (source = ?1 OR file = ?1) AND file IS NOT NULL ORDER BY id DESC LIMIT 1"
        )
        found = self._ask(question, (source,))
        return int(found[0][0]) if found else None

    # What was made of it

    def add_look(
        self, labels: int, images: int, gain: float, p: float, level: float, why: str, model: int | None, at_s: float
    ) -> None:
        """One look at the evidence; ``model``: that went into service by it."""
        with self.changing():
            values = (labels, images, gain, p, level, why, model, at_s)
            self._ask("INSERT INTO looks VALUES ((SELECT count(*) + 1 FROM looks), ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def looks(self) -> list[dict[str, Any]]:
        """All of them."""
        names = ("number", "labels", "images", "gain", "p", "level", "why", "model", "at_s")
        rows = self._ask(f"SELECT {', '.join(names)} FROM looks ORDER BY number")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def add_fit(self, labels: int, right: int, images: int) -> None:
        """How many images the candidate has right, each under the head that was fitted without it."""
        with self.changing():
            self._ask("INSERT OR REPLACE INTO fits VALUES (?, ?, ?)", (labels, right, images))

    def fits(self) -> list[tuple[int, int, int]]:
        """All of them: labels, right, images."""
        return self._ask("SELECT labels, right, images FROM fits ORDER BY labels")

    def note(self, name: str, value: str) -> None:
        """Keep a text by its name."""
        with self.changing():
            self._ask("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> str | None:
        """That text."""
        found = self._ask("SELECT value FROM notes WHERE name = ?", (name,))
        return None if not found else str(found[0][0])


def _signed(digest: int) -> int:
    return digest - (1 << 64) if digest >= 1 << 63 else digest


def _unsigned(stored: int) -> int:
    return stored + (1 << 64) if stored < 0 else stored
