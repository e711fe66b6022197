"""Standard streams that never end a run: a full, closed or abandoned one loses what is printed, nothing else."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO


class _Enduring(io.FileIO):
    """A file descriptor; what cannot be written to it is dropped."""

    lost: str | None = None
    """Why something was dropped; None while nothing was, or where the reader did not want more."""

    def write(self, data: Any, /) -> int:
        """All of the data, written or dropped."""
        rest = memoryview(data).cast("B")
        total = len(rest)
        try:
            while len(rest):
                done = super().write(rest)
                if done is None:  # a pipe that does not block, and is full
                    select.select([], [self.fileno()], [])
                    continue
                rest = rest[done:]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal is gone
                self.lost = error.strerror or str(error)
        return total


def protect_streams() -> None:
    """Let stdout and stderr endure whatever becomes of them; streams that a test has put there stay."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would take its place, and whatever is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protected(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protected(2, sys.stderr)


def _protected(number: int, stream: TextIO | None) -> TextIO:
    if stream is not None:
        with suppress(OSError):
            stream.flush()
    encoding = "utf-8" if stream is None else stream.encoding
    raw = _Enduring(number, "wb", closefd=False)
    # What is printed need not fit the encoding, such as the name of a file.
    by_line = number == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=by_line)


def lost_output() -> str | None:
    """Why a part of stdout is lost, in one line; None if nothing is. A reader that has left wants no more."""
    with suppress(ValueError):
        sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, _Enduring) else None
