"""Files that survive a power cut."""

from __future__ import annotations

import errno
import os
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
        refuse_device(path)
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


def refuse_device(path: Path) -> None:
    """Raise OSError where a device or a pipe is: as root, moving a file there would replace it."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a device or a pipe, not a file")


def cannot_write(path: Path, error: OSError) -> SetupError:
    """The error of a write that failed: what, where, what to do."""
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    fix = "free some space" if full else "choose a place that can be written to"
    return SetupError(f"cannot write ({error.strerror or error})", where=path, fix=fix)
