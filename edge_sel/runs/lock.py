"""One writer: a lock that the kernel releases when its process ends, however it ends."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from edge_sel.files import refuse_link

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOST = 4096
"""Bytes of a lock file: its owner's number, or a block that a power cut left. More is somebody's data."""


class BusyError(Exception):
    """Another process holds the lock; the text says which."""


@contextmanager
def hold_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock file at ``path``, whose folder exists; it is removed at the end.

    A file that a killed process left behind is no obstacle: what counts is the lock on it, not the file. A link of
    either kind, or a file too large for a lock, is refused before a byte of it changes.

    Args:
        path: of the lock file.
        wait: until the other process is done, instead of raising.

    Yields:
        Whether it is held; False where the file system has no locks.

    Raises:
        BusyError: another process holds it.
        OSError: the file cannot be made, or something that is no lock file is there.
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
        refuse_link(path)  # says why; O_NOFOLLOW does the same for a link that comes in between
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _refuse_other(handle)
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


def _refuse_other(handle: int) -> None:
    """Raise OSError where the open file is somebody's data, or has a second name (a hard link)."""
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_size > _MOST:
        raise OSError(errno.EEXIST, "it is no lock file of edge-sel")


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open file is still the one that others find there."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
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
