"""SIGINT, SIGTERM and SIGHUP ask the session to save and leave; a second one leaves at once.

A terminal that is closed may send SIGHUP twice, by itself and through its shell: that never leaves without saving.
"""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """Callable for ``Session.should_stop``."""

    def __init__(self) -> None:
        self._reason: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        hangup = getattr(signal, "SIGHUP", None)  # a terminal that is gone, unless nohup has it ignored
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            signal.signal(hangup, self._handle)

    def __call__(self) -> str | None:
        """``signal`` once one has arrived."""
        return self._reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._reason is not None and number != getattr(signal, "SIGHUP", None):
            raise KeyboardInterrupt
        self._reason = "signal"
