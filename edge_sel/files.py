"""Files that survive a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from edge_sel.errors import SetupError


def write_durably(path: Path, content: bytes) -> None:
    """Replace ``path`` so that after a power cut either the old or the new content is there, whole.

    Raises:
        SetupError: the disk is full or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # some file systems refuse it; the content is there all the same
            handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file that may be anything after a crash.

    Raises:
        OSError: it is not there, cannot be read, is no regular file (a pipe would be waited for), or is larger.
    """
    size = regular_size(path)
    if size > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return path.read_bytes()


def regular_size(path: Path) -> int:
    """Bytes of a regular file.

    Raises:
        OSError: it is not there, or it is something else.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return found.st_size


def sha256_of(path: Path) -> str | None:
    """Of a regular file's content, in hexadecimal digits; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        regular_size(path)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def cannot_write(path: Path, error: OSError) -> SetupError:
    """The error of a write that failed: what, where, what to do."""
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    fix = "free some space" if full else "choose a place that can be written to"
    return SetupError(f"cannot write ({error.strerror or error})", where=path, fix=fix)
