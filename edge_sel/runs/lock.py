"""One writer: a lock that the kernel releases when its process ends, however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class BusyError(Exception):
    """Another process holds the lock; the text says which."""


@contextmanager
def hold_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock file at ``path``, whose folder exists; it is removed at the end.

    A file that a killed process left behind is no obstacle: what counts is the lock on it, not the file.

    Args:
        path: of the lock file.
        wait: until the other process is done, instead of raising.

    Yields:
        Whether it is held; False where the file system has no locks.

    Raises:
        BusyError: another process holds it.
        OSError: the file cannot be made.
    """
    handle = _acquire(path, wait=wait)
    if handle is None:
        yield False
        return
    try:
        with suppress(OSError):  # the text is for people; a full disk is told where it matters
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} {_boot_id()}\n".encode())
        yield True
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
        os.close(handle)


def _acquire(path: Path, *, wait: bool) -> int | None:
    if fcntl is None:
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(path, handle):
                return handle
            os.close(handle)  # its owner removed it between our two calls
        except BlockingIOError:
            owner = _owner(handle)
            os.close(handle)
            raise BusyError(owner) from None
        except OSError as error:
            os.close(handle)
            if error.errno in _NO_LOCKS:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                return None
            raise


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open file is still the one that others find there."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _owner(handle: int) -> str:
    pid, _, boot = os.read(handle, 200).decode("utf-8", "replace").strip().partition(" ")
    if not pid.isdigit():
        return "another process"
    elsewhere = boot and boot != _boot_id()
    return f"process {pid} of another machine" if elsewhere else f"process {pid}"


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
