"""``edge-sel`` that tells from when to when it measures: a program that calls the command line.

    python tools/abuse/stamps.py STAMPS finetune …

STAMPS gets a byte whenever the books of a run are opened, as anew once the idle device has been measured, and one more
when they are closed: ``o``, or ``oo``, then ``c``.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def install(stamps: str) -> None:
    """Note what the recorder of this process is asked for."""
    from edge_sel.power.recorder import EnergyRecorder

    file = os.open(stamps, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    start_window, leave = EnergyRecorder.start_window, EnergyRecorder.__exit__

    def started(self: EnergyRecorder, name: str) -> Any:
        window = start_window(self, name)
        if name == "opening":
            os.write(file, b"o")
        return window

    def left(self: EnergyRecorder, *error: object) -> None:
        os.write(file, b"c")
        leave(self, *error)

    EnergyRecorder.start_window, EnergyRecorder.__exit__ = started, left  # type: ignore[method-assign]


if __name__ == "__main__":
    install(sys.argv[1])
    sys.argv[1:2] = []
    del sys.path[0]  # this folder
    from edge_sel.cli.main import main

    main()
