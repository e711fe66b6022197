"""What memory a run may take, and smaller batches where it is short."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge_sel.edge.outputs.model_files import import_onnx
from edge_sel.errors import SetupError
from edge_sel.power.resources import memory_left

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
        self._limit, self._emit, self._reported = limit, emit, limit.images

    def __call__(self) -> bool:
        """Whether it has since the last call: the batch size must not be lost then."""
        reported, self._reported = self._reported, self._limit.images
        if reported != self._reported:
            import_onnx()  # while there is room: it would not do to find none at the end
            self._emit("memory_short", batch_limit=self._reported)
        return reported != self._reported


# --- The process


SHARE = 0.9
"""Of the memory that is free as a run begins; the rest is for what others may need meanwhile."""


def trim() -> None:
    """Whole free pages go back; does nothing where the C library is not glibc.

    Before a session for evaluating is made beside that for training, it lowers the peak of a run by 5 MB of 154.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no such function
            ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def limited_memory(root: Path = Path("/")) -> Iterator[None]:
    """Meanwhile this process gets ``SHARE`` of the memory that is free now, on Linux; elsewhere nothing changes.

    A batch that is too large, or a pack that computes tensors of any size, then ends in a MemoryError. Otherwise Linux
    promises memory that it does not have, and ends this or another process when it is written to. ``root`` stands in
    for ``/`` in tests.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    import psutil

    groups, free = memory_left(root), psutil.virtual_memory().available
    most = psutil.Process().memory_info().data + int(SHARE * (free if groups is None else min(free, groups)))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (min(value for value in (most, soft, hard) if value >= 0), hard))
    try:
        yield
    finally:  # whoever calls the command as a function goes on with what it had
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
