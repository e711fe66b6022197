"""The watcher: each new image is classified, its novelty known, a line written; the newest are kept for a human.

What is cut at any point leaves a home that works: a kept file is on the disk before its line is, and a line and the
counters change at once.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Error as DatabaseError
from typing import Any, NamedTuple

import numpy as np

from edge_sel.data.images import MAX_PIXELS, UInt8Array, UnreadableImage, decode_image
from edge_sel.errors import SetupError
from edge_sel.files import read_regular, write_durably
from edge_sel.sel.design import Known, predictive_variance, with_samples
from edge_sel.sel.drift import Drift, distance_p, rank_sum_p
from edge_sel.watch.arrivals import Arrival
from edge_sel.watch.home import KEPT, suffix_of
from edge_sel.watch.keeper import Keeper
from edge_sel.watch.labelling import collect_moved, digest_of
from edge_sel.watch.learner import Learner, collect_labels
from edge_sel.watch.observer import Observer
from edge_sel.watch.records import Seen

BATCH = 16
"""Images that are written at once."""
MOST_BYTES = 256 << 20
TRIES, RETRY_S = 5, 1.0
"""A file that cannot be read may still be written: it is tried again while it changes, and so often after that."""
MOST_PENDING = 10_000
REPEATED = 512
"""Latest images whose pixels are remembered: the same again is not computed again."""
WINDOW = 200
"""Different images that a test of drift looks at."""
DRIFT_LEVEL = 0.01
"""False alarms, of so many windows."""
DIRECTIONS, SHUFFLES = 64, 200
HOUSEKEEPING_S = 10.0

Result = tuple[str, float, float]
"""Class, probability, novelty."""


@dataclass(frozen=True)
class Options:
    """What a person asks a watcher for.

    Attributes:
        rate: target share of images that are kept for a human.
        keep: most images without a label.
        keep_mb: and their size, in units of 2^20 bytes.
        max_pixels: of an image that is decoded.
        learn: whether labels are learnt from here too.
    """

    rate: float = 0.05
    keep: int = 500
    keep_mb: float = 500.0
    max_pixels: int = MAX_PIXELS
    learn: bool = True


class _Pending(NamedTuple):
    arrival: Arrival
    tries: int
    due_s: float


class _Read(NamedTuple):
    """A file, and what is in it."""

    file: Arrival
    content: bytes
    pixels: UInt8Array
    digest: int


@dataclass(frozen=True)
class Surroundings:
    """What a watcher asks its device, and whom it tells.

    Attributes:
        clock: monotonic seconds; ``wall_clock``: Unix seconds, for people.
        tell: is given an event, a dict with the key ``event``.
        should_stop: a reason ends the watcher.
        pressure: of energy, 0 to 1; may rest before it answers. A reason to stop as its second value.
        phase: of the energy recorder.
        joules: so far, with their source; None if nobody knows.
    """

    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    tell: Callable[[dict[str, Any]], None] = lambda event: None
    should_stop: Callable[[], str | None] = lambda: None
    pressure: Callable[[], tuple[float, str | None]] = lambda: (0.0, None)
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()
    joules: Callable[[], tuple[float | None, str]] = lambda: (None, "unavailable")


class Watcher:
    """Watches, with everything that it needs given.

    Args:
        learner: of the home; its observer is the model in service.
        options: of the person.
        around: clock, sensors, listener.
        rng: of the tests of drift.
    """

    def __init__(self, learner: Learner, options: Options, around: Surroundings, rng: np.random.Generator) -> None:
        self.learner, self.home, self.options, self.around = learner, learner.home, options, around
        self._rng, self._observer = rng, learner.observer
        self._keeper = Keeper(self.home, self._observer, options.rate, options.keep, options.keep_mb)
        self._recent: OrderedDict[int, Result] = OrderedDict()
        self._window: deque[np.ndarray] = deque(maxlen=WINDOW)
        self._pending: dict[str, _Pending] = {}
        self._known, self._labelled = self._taught(), self.home.records.latest_label()
        self._learnt_at, self._kept_since, self._different = -1, 0, 0
        self._cared_s, self._booked_j, self._full_reported = -1e9, 0.0, False

    def run(self, arrivals: Iterable[list[Arrival]]) -> str:
        """Until a signal or a limit ends it, or the stream does; says which."""
        self._care()
        for files in arrivals:
            for start in range(0, max(len(files), 1), BATCH):
                pressure, why = self.around.pressure()
                why = self.around.should_stop() or why
                if why is not None:
                    self._care()
                    return why
                self._take(files[start : start + BATCH] + self._due(), pressure)
            if self.around.clock() - self._cared_s >= HOUSEKEEPING_S:
                self._care()
        while self._pending:  # the stream has ended, but files may wait
            self._take([each.arrival for each in self._pending.values()], 0.0, last=True)
        self._care()
        return "done"

    # Images

    def _due(self) -> list[Arrival]:
        """Files that could not be read, and are to be tried again now."""
        now_s = self.around.clock()
        return [each.arrival for each in self._pending.values() if each.due_s <= now_s][:BATCH]

    def _take(self, files: list[Arrival], pressure: float, *, last: bool = False) -> None:
        """Look at files, and write what came of it; on a full disk that waits until there is room."""
        if not files:
            return
        seen, counters = [], dict[str, int]()
        fresh: dict[int, _Read] = {}
        again: list[_Read] = []
        with self.around.phase("load"):
            for file in files:
                read = self._read(file, last=last)
                if read is None:
                    continue
                if isinstance(read, Arrival):
                    seen.append(self._line(read, ("", None, None), 0))
                    _add(counters, "unreadable")
                elif read.digest in fresh or self._result_of(read.digest) is not None:
                    again.append(read)
                else:
                    fresh[read.digest] = read
        if fresh:
            self._look([*fresh.values()], pressure, seen, counters)
        for read in again:
            seen.append(self._line(read.file, self._result_of(read.digest) or ("", None, None), read.digest))
            _add(counters, "repeated")
        counters["images"] = len(seen)
        self._write(seen, counters)

    def _result_of(self, digest: int) -> Result | None:
        return self._recent.get(digest) or self.home.records.repeats(digest)

    def _read(self, file: Arrival, *, last: bool) -> _Read | Arrival | None:
        """What is in a file; the file alone if that is no image; None where it may become one, or has gone."""
        before = self._pending.pop(file.source, None)
        path = Path(file.source)
        size = self._observer.pack.manifest.model.image_size
        try:
            if file.content is None:
                info = path.stat()
                file = file._replace(mtime_ns=info.st_mtime_ns, size=info.st_size)
            content = read_regular(path, MOST_BYTES) if file.content is None else file.content
            pixels = decode_image(content, size, max_pixels=self.options.max_pixels)
            return _Read(file, content, pixels, digest_of(pixels))
        except FileNotFoundError:
            self.home.records.count("vanished")
            return None
        except UnreadableImage as error:
            why = error.reason
        except OSError as error:
            why = error.strerror or "cannot be read"
        tries = before.tries if before is not None and before.arrival[:3] == file[:3] else 0
        if file.content is None and tries < TRIES and not last and len(self._pending) < MOST_PENDING:
            due_s = self.around.clock() + RETRY_S * (tries + 1)
            self._pending[file.source] = _Pending(file, tries + 1, due_s)
            return None
        self.around.tell({"event": "unreadable", "source": file.source, "why": why})
        return file

    def _look(self, fresh: list[_Read], pressure: float, seen: list[Seen], counters: dict[str, int]) -> None:
        observer = self._observer
        with self.around.phase("classify"):
            looked = observer.look(np.stack([read.pixels for read in fresh]))
            units = observer.units(looked.rows)
            novelty = observer.novelty(units, self._known)
        with self.around.phase("choose"):
            self._window.extend(units.astype(np.float32))
            self._different += len(units)
            for place, (file, content, pixels, digest) in enumerate(fresh):
                best = int(looked.labels[place])
                result = (observer.classes[best], float(looked.probabilities[place, best]), float(novelty[place]))
                became = self._keeper.wanted(units[place], pixels, pressure)
                name = None
                if became == "kept":
                    name = self._store(content, digest, file.source)
                    became = "kept" if name else "not_kept"
                line = self._line(file, result, digest)
                if name is not None:
                    self._keeper.keep(units[place], name)
                    self._kept_since += 1
                    line = line._replace(file=name, row=looked.rows[place].tobytes(), computed_by=observer.computed_by)
                _add(counters, became)
                seen.append(line)
                self._recent[digest] = result
                while len(self._recent) > REPEATED:
                    self._recent.popitem(last=False)

    def _line(self, file: Arrival, result: tuple[str, float | None, float | None], digest: int) -> Seen:
        return Seen(
            file.source, file.mtime_ns, file.size, self.around.wall_clock(), *result, self._observer.number, digest
        )

    def _store(self, content: bytes, digest: int, source: str) -> str | None:
        """Copy a kept image into the home; None where the disk is full."""
        name = f"{KEPT}/{digest:016x}{suffix_of(source)}"
        try:
            write_durably(self.home.image_file(name), content)
        except SetupError as error:
            self._trouble(error.what)
            return None
        return name

    def _write(self, seen: list[Seen], counters: Mapping[str, int]) -> None:
        """The lines; a disk that is full is waited for, unless somebody wants the watcher to end."""
        while True:
            try:
                self.home.records.add(seen, counters)
                self._full_reported = False
                return
            except DatabaseError as error:
                self._trouble(str(error))
                if self.around.should_stop() is not None or self.around.pressure()[1] is not None:
                    return

    def _trouble(self, why: str) -> None:
        if not self._full_reported:
            self.around.tell({"event": "cannot_write", "why": why})
        self._full_reported = True

    # What is done from time to time

    def _care(self) -> None:
        """Make room, take in labels, test for drift, book joules."""
        records = self.home.records
        try:
            if self._kept_since:
                self._keeper.make_room()
                self._kept_since = 0
            if self.options.learn:
                collect_moved(self.home, self._observer, self.around.wall_clock)
                self._learn()
            self._follow()
            if self._different >= WINDOW:
                self._test_drift()
            spent_j, source = self.around.joules()
            if spent_j is not None:
                records.count("millijoules", round(1000 * (spent_j - self._booked_j)))
                self._booked_j = spent_j
                records.note("energy_source", source)
            records.forget_lines()
        except (DatabaseError, OSError, SetupError) as error:
            self._trouble(str(error))
        self._cared_s = self.around.clock()

    def _learn(self) -> None:
        """Fit a candidate to labels that came since, and put it into service where it is better."""
        latest = self.home.records.latest_label()
        if latest == self._learnt_at:
            return
        with self.around.phase("learn"):
            candidate = self.learner.candidate()
            look = None if candidate is None else self.learner.decide(candidate)
        self._learnt_at = latest
        if look is not None:
            self.around.tell({"event": "look", **look._asdict()})

    def _follow(self) -> None:
        """Take up another model in service, and what labels have made familiar."""
        observer, latest = self.learner.observer, self.home.records.latest_label()
        if observer.number != self._observer.number:
            self.around.tell({"event": "model", "number": observer.number, "classes": len(observer.classes)})
            same = observer.computed_by == self._observer.computed_by
            self._observer = observer
            self._keeper.take_up(observer)
            self._recent.clear()
            if not same:
                self._window.clear()
        if latest != self._labelled or observer.number != self._observer.number:
            self._known, self._labelled = self._taught(), latest

    def _taught(self) -> Known:
        """What is known by the server and by the labels."""
        observer, records = self._observer, self.home.records
        numbers = collect_labels(self.home, observer.classes).numbers
        rows, there = records.rows(numbers.tolist(), observer.computed_by, observer.width)
        return with_samples(observer.known, observer.units(rows[there]))

    def _test_drift(self) -> None:
        """Whether the latest different images still look like the server's."""
        drift = drift_of(self._observer, np.stack(list(self._window)).astype(np.float64), self._rng)
        self._different = 0
        seen = drift.seen(DRIFT_LEVEL)
        summary = {**drift._asdict(), "level": DRIFT_LEVEL, "seen": seen}
        self.home.records.note("drift", json.dumps(summary))
        self.around.tell({"event": "drift", **summary})


def drift_of(observer: Observer, units: np.ndarray, rng: np.random.Generator) -> Drift:
    """Of a window of images, ``Observer.units`` float64 [n, F + 1], against the server's images."""
    seen = observer.server.seen.features.astype(np.float64)
    variance = predictive_variance(observer.known, units)
    usual = observer.usual
    novel = float((variance > np.quantile(usual, 0.95)).mean())
    directions = observer.known.explained[:DIRECTIONS, :-1].T
    shuffles = np.stack([rng.permutation(len(units) + len(seen)) for _ in range(SHUFFLES)])
    distance, p_distance = distance_p(units[:, :-1] @ directions, seen @ directions, shuffles)
    return Drift(len(units), novel, rank_sum_p(variance, usual), distance, p_distance)


def _add(counters: dict[str, int], name: str) -> None:
    counters[name] = counters.get(name, 0) + 1
