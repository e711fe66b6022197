"""SIGINT and SIGTERM ask the session to save and leave; a second one leaves at once."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """Callable for ``Session.should_stop``."""

    def __init__(self) -> None:
        self._reason: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def __call__(self) -> str | None:
        """``signal`` once one has arrived."""
        return self._reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._reason is not None:
            raise KeyboardInterrupt
        self._reason = "signal"
