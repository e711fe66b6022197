"""A command as a child that ends with this process, and that gets the signals that this process gets."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, TextIO

from edge_sel.errors import UsageError

NOT_FOUND, NOT_EXECUTABLE = 127, 126
GRACE_S = 5.0
"""How long a command that is told to end may take."""
_PR_SET_PDEATHSIG = 1
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class NotStartedError(UsageError):
    """The command could not be started; the status is the one that a shell gives."""

    def __init__(self, error: OSError, command: str) -> None:
        super().__init__(f"cannot start the command ({error.strerror})", where=command or "''")
        self.exit_code = NOT_FOUND if error.errno == errno.ENOENT or not command else NOT_EXECUTABLE


def run_child(words: Sequence[str], stdout: TextIO | None) -> tuple[int, float]:
    """Exit status (128 + N after signal N) and CPU seconds of a command and its children.

    SIGTERM and SIGHUP are handed on to the command and all that it has started; what is still there after a grace is
    killed. Ctrl-C reaches it through the terminal. It is killed when this process is.

    Raises:
        NotStartedError: it is not there, or is no program.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    held = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}  # we stay to report
    ours, libc = os.getpid(), ctypes.CDLL(None)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with suppress(AttributeError):  # not Linux
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != ours:  # it was killed meanwhile
            os._exit(1)

    started: list[subprocess.Popen[Any]] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not started:
            raise KeyboardInterrupt
        family = _family(started[0].pid)
        _send(family, number)
        signal.signal(signal.SIGALRM, lambda *_: _send({*family, *_family(started[0].pid)}, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            held[number] = signal.signal(number, end)
    try:
        started.append(subprocess.Popen(words, stdout=stdout, preexec_fn=prepare))
        code = started[0].wait()
    except OSError as error:
        raise NotStartedError(error, words[0]) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in held.items():
            signal.signal(number, handler)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (code if code >= 0 else 128 - code), cpu_s


def _family(pid: int) -> list[Any]:
    """The process and all that it has started, parents first: a shell must not go on when its command has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _send(processes: Iterable[Any], number: int) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.Error, ProcessLookupError):  # psutil knows another process of the same number
            process.send_signal(number)
