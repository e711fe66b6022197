"""Files that survive a power cut."""

from __future__ import annotations

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
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if hasattr(os, "O_DIRECTORY"):
            handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SetupError(f"cannot write ({error.strerror or error})", where=path, fix="free some space") from error
