"""``events.jsonl``: what happens in a session, as it happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from edge_sel.edge.host import Listener
from edge_sel.files import cannot_write, open_no_link, refuse_link, regular_size
from edge_sel.runs.tables import finite

BLOCK = 1 << 20


class EventLog:
    """Appends one JSON object per event; a listener is told too."""

    def __init__(self, path: Path, clock: Callable[[], float], listener: Listener) -> None:
        self._path = path
        self._clock = clock
        self._start_s = clock()
        self._listener = listener
        self._whole = False

    def __call__(self, event: str, **details: Any) -> None:
        """Record ``event`` with its details and the seconds since the start of this part of the run."""
        entry = {"t_s": round(self._clock() - self._start_s, 3), "event": event, **details}
        try:
            if not self._whole:
                self._cut_half_line()
            with open_no_link(self._path, "ab") as file:
                file.write((json.dumps(finite(entry)) + "\n").encode())
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._listener(entry)

    def _cut_half_line(self) -> None:
        """A power cut can leave half a line, which must not swallow the next one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        refuse_link(self._path)
        if self._path.exists():
            end = regular_size(self._path)
            with self._path.open("r+b") as file:
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
