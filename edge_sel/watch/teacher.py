"""Which image to ask a person about: the one whose label teaches most now.

Of the images that were kept, that one is asked about whose label lowers the predictive variance most, of those that the
candidate is in doubt of (``sel.design``). Labels do not enter this: so the next image is chosen as if those that people
look at now were labelled already, and it is there before they answer. Every seventh image is one for validation, drawn
by chance: what was chosen to teach says little of all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edge_sel.data.split import as_places
from edge_sel.sel.design import DIRECTIONS, Known, directions_of, label_gains, with_samples
from edge_sel.watch.learner import Candidate, Learner, is_held
from edge_sel.watch.records import KeptImage

VALIDATION_EVERY = 7
"""So that their share is that of all images."""
LEASE_S = 120.0
"""An image that somebody looks at is not shown to anybody else for so long."""
ANEW = 1.1
"""Directions are looked for anew where there are so many more images."""


class _Pool(NamedTuple):
    """The images that were kept, as the choice sees them."""

    images: list[KeptImage]
    rows: np.ndarray
    """float16 [n, F]."""
    units: np.ndarray
    """float32 [n, D], in the directions."""
    held: np.ndarray
    """bool [n], for validation."""
    known: Known
    """Before any label, in these directions."""
    model: int
    """In service."""


class Teacher:
    """Chooses images for the people who label.

    Args:
        learner: of the home.
        clock: monotonic seconds.
        rng: of the directions; the choice hardly depends on it.
    """

    def __init__(self, learner: Learner, clock: Callable[[], float], rng: np.random.Generator) -> None:
        self._learner, self._clock, self._rng = learner, clock, rng
        self._pool: _Pool | None = None
        self._asked: dict[int, tuple[str, float]] = {}
        self._skipped: dict[str, set[int]] = {}
        self._doubt: np.ndarray | None = None
        self._directions: tuple[np.ndarray, int, int] | None = None

    def refresh(self, candidate: Candidate | None) -> None:
        """Take in what was kept or labelled since, and what the candidate is in doubt of."""
        observer, records = self._learner.observer, self._learner.home.records
        images = records.kept()
        pool = self._pool
        numbers = [image.number for image in images]
        if pool is None or pool.model != observer.number or [image.number for image in pool.images] != numbers:
            pool = self._pool = self._load(images)
        head = None if candidate is None else (candidate.fit.weight, candidate.fit.bias)
        parts = [
            1 - observer.probabilities(pool.rows[start : start + 500], head).max(1)
            for start in range(0, len(pool.rows), 500)
        ]
        self._doubt = np.concatenate(parts) if parts else np.zeros(0)

    def _load(self, images: list[KeptImage]) -> _Pool:
        learner, observer = self._learner, self._learner.observer
        rows, there = learner.rows_of(np.array([image.number for image in images], np.int64))
        images = [image for image, known in zip(images, there, strict=True) if known]
        rows = rows[there]
        parts = [observer.units(rows[start : start + 500]) for start in range(0, len(rows), 500)]
        units = np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, observer.width + 1), np.float32)
        found = self._directions
        if found is None or found[1] != observer.number or not len(rows) <= ANEW * found[2]:
            count = min(DIRECTIONS, len(rows), units.shape[1])
            some = units[np.linspace(0, len(units) - 1, min(len(units), 1000)).astype(int)] if len(units) else units
            chance = self._rng.standard_normal((len(some), min(count, len(some))))
            directions = directions_of(some.astype(np.float64), observer.known, chance)
            self._directions = found = directions, observer.number, len(rows)
        directions = found[0]
        known = observer.known._replace(explained=observer.known.explained @ directions)
        held = is_held(np.array([image.digest for image in images], np.uint64))
        return _Pool(images, rows, units @ directions.astype(np.float32), held, known, observer.number)

    def next_image(self, person: str) -> KeptImage | None:
        """For this person: the one that they look at already, or else the best of those that nobody does."""
        pool = self._pool
        if pool is None or self._doubt is None or not len(pool.images):
            return None
        now_s = self._clock()
        done = {label.image for label in self._learner.home.records.labels()}
        self._asked = {
            number: (who, until_s) for number, (who, until_s) in self._asked.items()
            if until_s > now_s and number not in done
        }  # fmt: skip
        by_number = {image.number: place for place, image in enumerate(pool.images)}
        for number, (who, _) in self._asked.items():
            if who == person and number in by_number:
                return pool.images[by_number[number]]
        labelled = np.array([image.number in done for image in pool.images])
        out = self._skipped.get(person, set())
        free = np.array([image.number not in self._asked and image.number not in out for image in pool.images])
        place = self._choose(pool, labelled, free & ~labelled, by_number, len(done))
        if place is None:
            return None
        self._asked[pool.images[place].number] = person, now_s + LEASE_S
        return pool.images[place]

    def _choose(
        self, pool: _Pool, labelled: np.ndarray, free: np.ndarray, by_number: dict[int, int], done: int
    ) -> int | None:
        assert self._doubt is not None
        held = np.flatnonzero(free & pool.held)
        if len(held) and (done % VALIDATION_EVERY == VALIDATION_EVERY - 1 or not (free & ~pool.held).any()):
            digests = np.array([pool.images[place].digest for place in held], np.uint64)
            return int(held[as_places(digests).argmin()])
        if not (free & ~pool.held).any():
            return None
        looked_at = [by_number[number] for number in self._asked if number in by_number]
        learnt = np.union1d(np.flatnonzero(labelled & ~pool.held), np.array(looked_at, np.int64))
        known = with_samples(pool.known, pool.units[learnt].astype(np.float64))
        gains = label_gains(pool.units, known, self._doubt.astype(np.float32) + np.float32(1e-6))
        gains = np.where(free & ~pool.held, gains, -1.0)
        return int(gains.argmax())

    def shown(self, number: int) -> KeptImage | None:
        """An image that was kept, by its number."""
        found = [image for image in (self._pool.images if self._pool else []) if image.number == number]
        return found[0] if found else None

    def guess(self, number: int, candidate: Candidate | None) -> tuple[str, float]:
        """The class that the candidate, or the model in service, says of a kept image, and its probability."""
        pool, observer = self._pool, self._learner.observer
        assert pool is not None
        place = next(place for place, image in enumerate(pool.images) if image.number == number)
        head = None if candidate is None else (candidate.fit.weight, candidate.fit.bias)
        probabilities = observer.probabilities(pool.rows[place : place + 1], head)[0]
        names = observer.classes if candidate is None else candidate.classes
        best = int(probabilities.argmax())
        return names[best], float(probabilities[best])

    def answered(self, number: int) -> None:
        """Somebody has said what this one shows."""
        self._asked.pop(number, None)

    def skip(self, number: int, person: str) -> None:
        """This person does not want to be asked about it again, for as long as the program runs."""
        self._asked.pop(number, None)
        self._skipped.setdefault(person, set()).add(number)

    def left(self) -> tuple[int, int]:
        """Images that were kept, and of these how many have a label."""
        images = self._pool.images if self._pool else []
        done = {label.image for label in self._learner.home.records.labels()}
        return len(images), sum(image.number in done for image in images)
