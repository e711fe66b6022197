"""``events.jsonl``: what happens in a session, as it happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from edge_sel.edge.host import Listener
from edge_sel.files import cannot_write, finite, open_no_link, refuse_link, regular_size

BLOCK = 1 << 20


class EventLog:
    """Appends one JSON object per event to a file, if there is one; a listener is told too."""

    def __init__(self, path: Path | None, clock: Callable[[], float], listener: Listener) -> None:
        self._path = path
        self._clock = clock
        self._start_s = clock()
        self._listener = listener
        self._whole = False

    def __call__(self, event: str, **details: Any) -> None:
        """Record ``event`` with its details and the seconds since the start of this part of the run."""
        entry = {"t_s": round(self._clock() - self._start_s, 3), "event": event, **details}
        if self._path is not None:
            self._append(self._path, (json.dumps(finite(entry)) + "\n").encode())
        self._listener(entry)

    def _append(self, path: Path, line: bytes) -> None:
        try:
            if not self._whole:
                self._cut_half_line(path)
            with open_no_link(path, "ab") as file:
                file.write(line)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _cut_half_line(self, path: Path) -> None:
        """A power cut can leave half a line, which must not swallow the next one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_link(path)
        if path.exists():
            end = regular_size(path)
            with path.open("r+b") as file:
                whole = _end_of_lines(file, end)
                if whole < end:
                    file.truncate(whole)
        self._whole = True


def _end_of_lines(file: BinaryIO, end: int) -> int:
    """Where the last line that was written whole ends; looked for from the end, as logs grow."""
    while end > 0:
        start = file.seek(max(0, end - BLOCK))
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
