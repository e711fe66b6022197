"""``python -m edge_sel`` and ``edge-sel``: Ctrl-C while modules are imported is no traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType

from edge_sel.errors import EXIT_INTERRUPTED


def main() -> None:
    """Import the command line and run it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the caller has it ignored
        signal.signal(signal.SIGINT, _leave)
    from edge_sel.cli.main import main as run

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave at once: an exception inside an import may be printed, or taken for a missing module.

    Files are replaced whole, so nothing is left half-written. Runs that can be resumed handle signals themselves.
    """
    try:
        os.write(2, b"edge-sel: interrupted\n")
    finally:
        os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
