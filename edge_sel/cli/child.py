"""A command as a child that ends with this process, and that gets the signals that this process gets."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, TextIO

from edge_sel.errors import UsageError

NOT_FOUND, NOT_EXECUTABLE = 127, 126
GRACE_S = 5.0
"""How long a command that is told to end may take."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KEEPER = sys.platform == "linux"
"""Whether a process of ours stands between this one and the command; see ``_stand_between``."""
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class NotStartedError(UsageError):
    """The command could not be started; the status is the one that a shell gives."""

    def __init__(self, error: OSError, command: str) -> None:
        super().__init__(f"cannot start the command ({error.strerror})", where=command or "''")
        self.exit_code = NOT_FOUND if error.errno == errno.ENOENT or not command else NOT_EXECUTABLE


def run_child(words: Sequence[str], stdout: TextIO | None) -> tuple[int, float]:
    """Exit status (128 + N after signal N) and CPU seconds of a command and its children.

    SIGTERM and SIGHUP are handed on to the command and all that it has started; what is still there after a grace is
    killed. Ctrl-C reaches it through the terminal. On Linux it and all that it has started are killed when this process
    is; elsewhere they go on.

    Raises:
        NotStartedError: it is not there, or is no program.
    """
    import psutil  # noqa: F401  # not to be imported in a forked process

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    held = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}  # we stay to report
    ours = os.getpid()

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if _KEEPER:
            _stand_between(ours)

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


def _stand_between(ours: int) -> None:
    """Return in a child, which becomes the command; this process stays, until the command or process ``ours`` ends.

    The kernel hands it all orphans among the command's offspring, and tells it when ``ours`` has ended, however that
    was: then it kills them all. Its exit status is the command's, 128 + N after signal N.
    """
    prctl, here, told = ctypes.CDLL(None).prctl, os.getpid(), signal.SIGRTMIN
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, told})
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    prctl(_PR_SET_PDEATHSIG, told)
    if os.getppid() != ours:  # it was killed meanwhile
        os._exit(1)
    command = os.fork()
    if not command:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != here:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # among them who waits for the command to start
    for number in (signal.SIGINT, signal.SIGQUIT, *_ENDING):
        signal.signal(number, signal.SIG_IGN)
    while signal.sigwait({signal.SIGCHLD, told}) == signal.SIGCHLD:
        for pid, status in _ended():
            if pid == command:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
    while family := _family(here):  # one may just be starting another
        _send(family, signal.SIGKILL)
        time.sleep(0.01)
        for _ in _ended():
            pass
    os._exit(1)


def _ended() -> Iterator[tuple[int, int]]:
    """Number and status of each child that has ended since."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _family(pid: int) -> list[Any]:
    """The command and all that it has started, parents first: a shell must not go on when its command has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        return [*([] if _KEEPER else [process]), *process.children(recursive=True)]
    except psutil.Error:
        return []


def _send(processes: Iterable[Any], number: int) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.Error, ProcessLookupError):  # psutil knows another process of the same number
            process.send_signal(number)
