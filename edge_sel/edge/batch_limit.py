"""How many images are computed at once: as many as asked for, or fewer where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edge_sel.edge.outputs.model_files import import_onnx
from edge_sel.errors import SetupError

FLOOR = 8
"""Fewest images in a batch: below this, batch statistics and gradients are mostly noise."""
Computed = TypeVar("Computed")


@dataclass
class BatchLimit:
    """Most images in a batch of a run; halved whenever one does not fit into memory, never raised again.

    It is saved with the run, so a resumed run computes the same bits, also on a device that has more memory. It holds
    for training, statistics and inference alike.

    Attributes:
        images: that many; 0 as long as everything fits.
    """

    images: int = 0

    def of(self, asked: int) -> int:
        """The batch size where ``asked`` images are asked for."""
        return min(asked, self.images or asked)

    def halve(self, images: int, work: str) -> None:
        """Lower the limit after a batch of so many images did not fit.

        Raises:
            SetupError: it was the smallest batch already; ``work`` says of what.
        """
        if images <= FLOOR:
            raise SetupError(
                f"out of memory, with only {images} images in a batch", where=work,
                fix="end other programs, then the same command with --resume --out continues",
            )  # fmt: skip
        self.images = max(FLOOR, images // 2)

    def whole(self, asked: int, compute: Callable[[int], Computed], work: str) -> Computed:
        """``compute`` with a batch size; from its beginning again with a smaller one where memory is short.

        Where the smallest batch does not fit, larger ones of training hold the memory: then these become smaller. The
        result never depends on where in the work that was, which a resumed run could not repeat.

        Raises:
            SetupError: the smallest batch does not fit either.
        """
        while True:
            size = self.of(asked)
            try:
                return compute(size)
            except MemoryError:
                self.halve(max(size, self.images), work)

    def parts(
        self, rows: np.ndarray, compute: Callable[[np.ndarray], Computed], work: str
    ) -> Iterator[tuple[np.ndarray, Computed]]:
        """``compute`` for all rows, or for part after part where memory is short: each part with its result.

        Raises:
            SetupError: the smallest batch does not fit either.
        """
        while len(rows):
            part = rows[: self.of(len(rows))]
            try:
                result = compute(part)
            except MemoryError:
                self.halve(len(part), work)
                continue
            yield part, result
            rows = rows[len(part) :]


class Shortage:
    """Tells by the event ``memory_short`` that a limit has become lower, each time once."""

    def __init__(self, limit: BatchLimit, emit: Callable[..., Any]) -> None:
        self._limit, self._emit, self._told = limit, emit, limit.images

    def __call__(self) -> bool:
        """Whether it has since the last call: the batch size must not be lost then."""
        told, self._told = self._told, self._limit.images
        if told != self._told:
            import_onnx()  # while there is room: it would not do to find none at the end
            self._emit("memory_short", batch_limit=self._told)
        return told != self._told
