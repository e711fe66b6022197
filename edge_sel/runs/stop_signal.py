"""SIGINT, SIGTERM and SIGHUP ask a run to save and leave; a second one leaves at once.

A terminal that is closed may send SIGHUP twice, by itself and through its shell: that never leaves without saving.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignal:
    """Callable for ``should_stop``. As a context manager it gives the signals back at the end.

    Outside of the main thread, where Python hears no signals, it hears none.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # A terminal that is gone, unless nohup has it ignored.
            if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                self._before[number] = signal.signal(number, self._handle)

    def __call__(self) -> str | None:
        """``signal`` once one has arrived."""
        return self._reason

    def __enter__(self) -> StopSignal:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._reason is not None and number != getattr(signal, "SIGHUP", None):
            raise KeyboardInterrupt
        self._reason = "signal"
