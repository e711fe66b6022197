"""Which images are kept for a human: new ones, a target share of all, and none twice.

An image scores by its predictive variance under what is known *and* what is kept: what is like a kept image has little
left to teach, though nobody has labelled that one yet. The Sundew gate holds the share of images that are kept at its
target, by the score's rank among recent ones; energy pressure lowers the target.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress

import numpy as np

from edge_sel.data.duplicates import shows_again
from edge_sel.data.images import UInt8Array, UnreadableImage, read_image
from edge_sel.sel import sundew
from edge_sel.sel.design import predictive_variance, with_samples
from edge_sel.watch.home import Home
from edge_sel.watch.observer import Observer

WINDOW = 32
"""Images between two updates of the gate."""
RECENT = 256
"""Scores that an image's is ranked among."""
FIRST = 16
"""As long as there are fewer, what is new is kept."""
LIKELY = 3
"""Kept images that are looked at as possible duplicates, those with the most similar features."""
SIMILAR = 0.6
"""Least cosine of their features."""
REMEMBERED = 1000
"""Latest kept images that count as known."""
ROOM = 0.1
"""Share of the limit that is made free at once."""


class Keeper:
    """Decides, and makes room.

    Args:
        home: where images are kept.
        observer: of the model in service.
        rate: target share of images.
        most: images without a label, at most.
        most_mb: and their bytes, in units of 2^20.
    """

    def __init__(self, home: Home, observer: Observer, rate: float, most: int, most_mb: float) -> None:
        self._home, self._most, self._most_bytes = home, most, most_mb * 2**20
        self._config = sundew.SundewConfig.fast(rate)
        self._gate = sundew.init(self._config)
        self._scores: deque[float] = deque(maxlen=RECENT)
        self._seen = self._passed = 0
        self.take_up(observer)

    def take_up(self, observer: Observer) -> None:
        """Begin, or go on with another model in service."""
        self.observer = observer
        images = self._home.records.kept()[-REMEMBERED:]
        rows, there = self._home.records.rows([image.number for image in images], observer.computed_by, observer.width)
        self._files = [image.file for image, known in zip(images, there, strict=True) if known]
        self._units = observer.units(rows[there]).astype(np.float32)
        self._known = with_samples(observer.known, self._units.astype(np.float64))

    def wanted(self, unit: np.ndarray, pixels: UInt8Array, pressure: float) -> str:
        """Whether to keep an image: ``kept``, ``passed_over`` or ``duplicate``.

        Args:
            unit: float64 [F + 1], of ``Observer.units``.
            pixels: uint8 [H, W, 3].
            pressure: of energy, 0 to 1.
        """
        score = float(predictive_variance(self._known, unit[None])[0])
        rank = (np.sum(np.less(self._scores, score)) + 0.5) / (len(self._scores) + 1) if self._scores else 1.0
        if len(self._scores) < FIRST:
            passes = bool(self.observer.novelty(unit[None], self._known)[0] > 1)
        else:
            passes = bool(rank > self._gate.threshold)
        self._scores.append(score)
        self._seen += 1
        self._passed += passes
        if self._seen == WINDOW:
            config = sundew.with_pressure(self._config, pressure)
            self._gate = sundew.update(config, self._gate, self._passed / self._seen)
            self._seen = self._passed = 0
        if not passes:
            return "passed_over"
        return "duplicate" if self._is_shown(unit, pixels) else "kept"

    def keep(self, unit: np.ndarray, file: str) -> None:
        """It is kept now, in this file."""
        self._files.append(file)
        self._units = np.concatenate([self._units, unit[None].astype(np.float32)])
        self._known = with_samples(self._known, unit[None])
        if len(self._files) > 1.1 * REMEMBERED:
            self.take_up(self.observer)

    def _is_shown(self, unit: np.ndarray, pixels: UInt8Array) -> bool:
        """Whether a kept image shows the same, by the pixels of those with the most similar features."""
        if not self._files:
            return False
        own = unit[:-1].astype(np.float32)
        others = self._units[:, :-1]
        cosine = others @ own / np.maximum(np.linalg.norm(others, axis=1) * np.linalg.norm(own), 1e-9)
        size, found = pixels.shape[:2], []
        for place in np.argsort(-cosine)[:LIKELY]:
            if cosine[place] >= SIMILAR:
                with suppress(UnreadableImage):  # a person has moved it meanwhile
                    found.append(read_image(self._home.image_file(self._files[place]), (size[0], size[1])))
        return bool(found) and shows_again(pixels, np.stack(found))

    def make_room(self) -> int:
        """Let the least new images without a label go where there are too many; how many went."""
        records = self._home.records
        labelled = {label.image for label in records.labels()}
        spare = [image for image in records.kept() if image.number not in labelled]
        sizes = [_bytes(self._home, image.file) for image in spare]
        if len(spare) <= self._most and sum(sizes) <= self._most_bytes:
            return 0
        observer = self.observer
        rows, there = records.rows([image.number for image in spare], observer.computed_by, observer.width)
        taught, known = records.rows(sorted(labelled), observer.computed_by, observer.width)
        value = observer.novelty(observer.units(rows), with_samples(observer.known, observer.units(taught[known])))
        order = np.argsort(np.where(there, value, -1.0), kind="stable").tolist()
        count, size, gone = len(spare), sum(sizes), 0
        for place in order:
            if count <= (1 - ROOM) * self._most and size <= (1 - ROOM) * self._most_bytes:
                break
            image = spare[place]
            records.move(
                image.number, None
            )  # first: what is cut in between leaves a file too many, and no line too few
            with suppress(OSError):
                self._home.image_file(image.file).unlink(missing_ok=True)
            count, size, gone = count - 1, size - sizes[place], gone + 1
        if gone:
            records.count("let_go", gone)
            self.take_up(observer)
        return gone


def _bytes(home: Home, file: str) -> int:
    try:
        return os.stat(home.image_file(file)).st_size  # noqa: PTH116 - as quick as can be, for thousands
    except OSError:
        return 0
