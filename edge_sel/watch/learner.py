"""What the labels teach: a candidate after each of them, and whether it replaces the model in service.

The candidate is the head in closed form on all labelled images but those whose role is validation, which follows from
their pixels and never changes (``data.split``). It replaces the model in service on the evidence that ``finetune`` asks
for. Labels come one by one, and who looks often enough sees anything: so looks are few, at labels that grow by
half, and the k-th may err with a chance of ``α / (k (k + 1))`` only, which is α for all looks there will ever be.

Source: Lan and DeMets 1983, Discrete sequential boundaries for clinical trials (an error rate that is spent).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.config.settings import Settings
from edge_sel.data.images import UnreadableImage, read_image
from edge_sel.data.split import as_places
from edge_sel.edge.evidence import Evidence, compare
from edge_sel.edge.outputs.model_files import Served, learnt_now, nothing_learnt, served_of
from edge_sel.edge.progress import changed_in, original_weights
from edge_sel.edge.ship import Recall, forgot_too_much
from edge_sel.engines.base import Engine
from edge_sel.runs.lock import hold_lock
from edge_sel.sel.feature_sums import as_they_were
from edge_sel.sel.ridge import HeadFit, fit_head
from edge_sel.watch.home import Home
from edge_sel.watch.observer import CHUNK, Observer

FIRST_LOOK = 16
"""Labelled images."""
LOOK_GROWTH = 1.5
SEARCH_GROWTH = 1.2
"""Strength, prior and depth are chosen anew with so many more images; between that the last choices hold."""
FLIPS_PER_ERROR, MOST_FLIPS = 20, 40_000
"""Random signs, for a p value that can be below the level."""
LOCK = ".learn.lock"


class Labelled(NamedTuple):
    """The images that people have labelled, without those that they disagree about."""

    numbers: np.ndarray
    """int [N], of the images."""
    labels: np.ndarray
    """int [N]."""
    digests: np.ndarray
    """uint64 [N]."""
    classes: tuple[str, ...]
    """Those of the pack, then new ones."""
    disputed: tuple[int, ...]
    """Numbers of images that two people call by different names."""
    aside: tuple[int, ...]
    """Numbers of images that show none of the classes."""

    @property
    def held(self) -> np.ndarray:
        """bool [N], whether an image is for validation."""
        return is_held(self.digests)


def is_held(digests: np.ndarray) -> np.ndarray:
    """bool [N], whether images are for validation, by hashes of their pixels."""
    held: np.ndarray = as_places(digests) < Settings.validation_fraction
    return held


class Candidate(NamedTuple):
    """A head that was fitted to the labels."""

    classes: tuple[str, ...]
    fit: HeadFit
    digests: np.ndarray
    """uint64 [n], of the images that it was fitted to; ``labels`` are theirs."""
    labels: np.ndarray
    given: int
    """Images with a label, those for validation too."""
    evidence: Evidence | None
    """Against the model in service, at the level of the next look; None where there is too little."""
    right: int
    """Images that it has right, each under the head that was fitted without it; of ``len(labels)``."""


class Look(NamedTuple):
    """A decision."""

    number: int
    level: float
    shipped: int | None
    """Number of the new model in service."""
    why: str


def collect_labels(home: Home, classes: tuple[str, ...]) -> Labelled:
    """What people have said so far; each person's latest word on an image counts."""
    images = {image.number: image for image in home.records.kept()}
    said: dict[int, dict[str, str | None]] = {}
    for label in home.records.labels():
        if label.image in images:
            said.setdefault(label.image, {})[label.person] = label.name
    names = list(classes)
    for words in said.values():
        names += [name for name in words.values() if name is not None and name not in names]
    numbers, labels, disputed, aside = [], [], [], []
    for number, words in said.items():
        opinions = set(words.values())
        if len(opinions) > 1:
            disputed.append(number)
        elif (name := opinions.pop()) is None:
            aside.append(number)
        else:
            numbers.append(number)
            labels.append(names.index(name))
    digests = np.array([images[number].digest for number in numbers], np.uint64)
    return Labelled(
        np.array(numbers, np.int64), np.array(labels, np.int64), digests, tuple(names), tuple(disputed), tuple(aside)
    )


class Learner:
    """Fits candidates, and puts the better one into service.

    Args:
        home: of the watcher.
        engine: computes features that are not there, of a model that is new in service.
        clock: Unix seconds, for the records.
        busy: entered while images are looked at, such as a phase of the energy recorder.
    """

    def __init__(
        self, home: Home, engine: Engine, clock: Callable[[], float] = time.time,
        busy: Callable[[str], AbstractContextManager[None]] | None = None,
    ) -> None:  # fmt: skip
        self.home, self.engine, self._clock, self._busy = home, engine, clock, busy
        self._observer: Observer | None = None
        self._searched: tuple[HeadFit, int, int, int] | None = None

    @property
    def observer(self) -> Observer:
        """Of the model in service, loaded anew where that has changed."""
        number = self.home.service()
        if self._observer is None or self._observer.number != number:
            self._observer = Observer(self.home.pack_in_service(number), number, self.engine)
            self._searched = None
        return self._observer

    def rows_of(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features float16 [n, F] of kept images, and which are known [n]: an image may have gone."""
        observer, records = self.observer, self.home.records
        rows, there = records.rows(numbers.tolist(), observer.computed_by, observer.width)
        files = {image.number: image.file for image in records.kept()}
        missing = [place for place in np.flatnonzero(~there).tolist() if int(numbers[place]) in files]
        for start in range(0, len(missing), CHUNK):
            pixels, places = [], []
            for place in missing[start : start + CHUNK]:
                path = self.home.image_file(files[int(numbers[place])])
                try:
                    pixels.append(read_image(path, observer.pack.manifest.model.image_size))
                    places.append(place)
                except UnreadableImage:
                    continue
            if places:
                found = observer.features(np.stack(pixels))
                rows[places], there[places] = found, True
                records.put_rows([int(numbers[place]) for place in places], found, observer.computed_by)
        return rows, there

    def candidate(self) -> Candidate | None:
        """Of the labels so far; None where there are too few of them."""
        observer = self.observer
        given = collect_labels(self.home, observer.classes)
        rows, there = self.rows_of(given.numbers)
        training = np.flatnonzero(there & ~given.held)
        if len(training) < 2 or len(given.classes) < 2:
            return None
        classes, labels = len(given.classes), given.labels
        served = served_of(self.home.learnt_by(observer.number, len(observer.classes)), given.digests, classes)
        start = original_weights(observer.pack, classes)
        old = observer.pack.linear_head.joined(start)
        fit = self._fit(
            rows[training], labels[training], classes, old, served.left_out[training], self._addend(served, classes)
        )
        judged = np.flatnonzero(there & given.held)
        evidence = self._compare(rows, labels, old, fit, served, training, judged)
        right = int((fit.left_out.argmax(1) == labels[training]).sum())
        self.home.records.add_fit(len(given.numbers), right, len(training))
        return Candidate(given.classes, fit, given.digests[training], labels[training], len(labels), evidence, right)

    def _addend(self, served: Served, classes: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The exported head where all that the model in service has learnt is here: else it would count twice."""
        pack = self.observer.pack
        if pack.exported is None or not served.whole or changed_in(self.observer.weights, pack.exported):
            return None
        return pack.linear_head.joined(original_weights(pack.exported, classes))

    def _fit(
        self, rows: np.ndarray, labels: np.ndarray, classes: int, old: tuple[np.ndarray, np.ndarray], said: np.ndarray,
        addend: tuple[np.ndarray, np.ndarray] | None,
    ) -> HeadFit:  # fmt: skip
        observer, more = self.observer, classes - len(self.observer.classes)
        server = observer.server
        known = len(server.prior.known)
        prior = server.prior._replace(
            targets=np.pad(server.prior.targets, ((0, 0), (0, classes - known))),
            known=np.pad(server.prior.known, (0, classes - known)),
        )
        groups = observer.pack.manifest.model.feature_groups(observer.width)
        like = None
        if self._searched and self._searched[1:3] == (classes, more) and len(rows) < SEARCH_GROWTH * self._searched[3]:
            like = self._searched[0]
        fit = fit_head(
            rows.astype(np.float32), labels, classes, old=old, groups=groups, shallow=groups[0],
            standard=server.standard, prior=prior, examples=server.seen if len(server.seen.labels) else None,
            old_said=said, addend=addend, like=like,
        )  # fmt: skip
        if like is None:
            self._searched = (fit, classes, more, len(rows))
        return fit

    def _compare(
        self, rows: np.ndarray, labels: np.ndarray, old: tuple[np.ndarray, np.ndarray], fit: HeadFit, served: Served,
        training: np.ndarray, judged: np.ndarray,
    ) -> Evidence | None:  # fmt: skip
        """On validation images, and on training images that each model knows as it would say without them."""
        observer = self.observer
        fair = np.flatnonzero(served.fair[training])
        taught = training[fair]
        before = served.instead_of(observer.logits(rows[taught], old), taught)
        before = np.concatenate([observer.logits(rows[judged], old), before])
        after = np.concatenate([observer.logits(rows[judged], (fit.weight, fit.bias)), fit.left_out[fair]])
        if not len(before):
            return None
        level = self._level(len(self.home.records.looks()) + 1)
        flips = min(max(2000, ceil(FLIPS_PER_ERROR / (1 - level))), MOST_FLIPS)
        rng = np.random.default_rng([len(before), observer.number])
        return compare(before, after, labels[np.concatenate([judged, taught])], rng, level=level, flips=flips)

    @staticmethod
    def _level(number: int) -> float:
        """Of the look with this number, from 1."""
        return 1 - (1 - Settings.evidence_level) / (number * (number + 1))

    def look_due(self, candidate: Candidate) -> bool:
        """Whether there are enough labels more for another look."""
        looks, images = self.home.records.looks(), candidate.evidence.images if candidate.evidence else 0
        return images >= (ceil(LOOK_GROWTH * looks[-1]["images"]) if looks else FIRST_LOOK)

    def decide(self, candidate: Candidate) -> Look | None:
        """Look whether the candidate is better, and put it into service if it is; None if no look is due.

        One process at a time; another one that holds the lock looks itself.
        """
        with hold_lock(self.home.folder / LOCK, wait=True):
            evidence = candidate.evidence
            if evidence is None or not self.look_due(candidate) or self.home.service() != self.observer.number:
                return None
            number = len(self.home.records.looks()) + 1
            level = self._level(number)
            better, weights = evidence.better(level) and candidate.fit.changed, self._weights(candidate)
            why = _words(evidence, better)
            if better and (forgotten := self._forgotten(candidate)):
                better, why = False, f"better here, but {forgotten}"
            shipped = self._ship(candidate, weights, why) if better else None
            p = min(evidence.p_loss, evidence.p_right)
            self.home.records.add_look(
                candidate.given, evidence.images, evidence.gain, p, level, why, shipped, self._clock()
            )
            return Look(number, level, shipped, why)

    def _weights(self, candidate: Candidate) -> Arrays:
        pack = self.observer.pack
        start = original_weights(pack, len(candidate.classes))
        return {**start, **pack.linear_head.parted(candidate.fit.weight, candidate.fit.bias, start)}

    def _forgotten(self, candidate: Candidate) -> str:
        """What the server's images say against it; empty if nothing."""
        observer, server = self.observer, self.observer.server
        features, labels = as_they_were(server.seen.features.astype(np.float64), server.standard), server.seen.labels
        exported = observer.pack.exported or observer.pack
        old = exported.linear_head.joined(exported.weights())
        same_body = not changed_in(observer.weights, exported)
        head = old if same_body else observer.head  # of another body's features the exported head says nothing
        known, right = (
            observer.logits(features, each).argmax(1) == labels
            for each in (head, (candidate.fit.weight, candidate.fit.bias))
        )
        absent = np.setdiff1d(labels, candidate.labels)
        if len(labels) and forgot_too_much(Recall(known, right, labels), 1 - Settings.forget, absent):
            still = f"{right.sum()} of {len(labels)} images of the server are right, before {known.sum()}"
            return f"it forgot too much: {still}"
        return ""

    def _ship(self, candidate: Candidate, weights: Arrays, why: str) -> int:
        observer, classes = self.observer, len(candidate.classes)
        before = self.home.learnt_by(observer.number, len(observer.classes)) or nothing_learnt()
        left_out = candidate.fit.left_out.astype(np.float32)
        learnt = learnt_now(before, candidate.digests, np.arange(len(left_out)), left_out, classes)
        about: dict[str, Any] = {"labels": len(candidate.labels), "why": why, "before": observer.number}
        return self.home.put_in_service(weights, candidate.classes, learnt, about)


def _words(evidence: Evidence, better: bool) -> str:
    points = f"{100 * evidence.gain:+.1f} points on {evidence.images} images"
    p = min(evidence.p_loss, evidence.p_right)
    if better:
        return f"better, {points} (p = {p:.1g})"
    more = labels_needed(evidence)
    return f"not shown to be better: {points}" + (f"; about {more} more labels would show it" if more else "")


def labels_needed(evidence: Evidence) -> int:
    """How many more would show what there seems to be; 0 where that is nothing, or more than anybody gives."""
    needed = evidence.images_needed or 0
    return needed - evidence.images if evidence.images < needed < 20 * max(evidence.images, 50) else 0
