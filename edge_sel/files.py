"""Files that survive a power cut, written never through a symbolic link, and read only where they are regular.

Also the process's standard error, which is a file as well.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from edge_sel.errors import SetupError, escaped

_CHUNK = 1 << 20
_FLAGS = {"wb": os.O_WRONLY, "ab": os.O_WRONLY | os.O_APPEND, "r+b": os.O_RDWR}


def write_durably(path: Path, content: bytes) -> None:
    """Replace ``path`` so that after a power cut either the old or the new content is there, whole.

    Raises:
        SetupError: the disk is full or the place cannot be written, or is a symbolic link.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        refuse_device(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_link(path)
        _fill(open_no_link(temporary, "wb"), content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    _force(path.parent)


def write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that is not there yet, with these permissions at most; nothing is ever replaced.

    Raises:
        SetupError: something is there already, be it a link to nothing; or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags, mode)
    except FileExistsError as error:
        raise SetupError("it exists and is not overwritten", where=path, fix="choose another name") from error
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        _fill(os.fdopen(handle, "wb"), content)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise cannot_write(path, error) from error
    _force(path.parent)


def _fill(file: IO[bytes], content: bytes) -> None:
    """Write, onto the disk, and close."""
    with file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _force(folder: Path) -> None:
    """The names in a folder onto the disk."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # some file systems refuse it; the content is there all the same
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def cache_folder(environ: Mapping[str, str], name: str) -> Path | None:
    """Where what can be made again is kept: in ``$XDG_CACHE_HOME`` or ``~/.cache``; None without a home."""
    folder = Path(environ.get("XDG_CACHE_HOME", ""))
    if not folder.is_absolute():
        try:
            folder = Path.home() / ".cache"
        except RuntimeError:  # a user that the system does not know, as in some containers
            return None
    return folder / "edge-sel" / name


def refuse_link(path: Path) -> None:
    """Raise OSError where a symbolic link stands: what would be written there may be anybody's file."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link")


def open_no_link(path: Path, mode: Literal["wb", "ab", "r+b"], buffering: int = -1) -> IO[bytes]:
    """As ``Path.open``, but for what may be somebody else's file under this name; it is made if it is not there.

    Raises:
        OSError: it cannot be opened, is a link of either kind, no regular file, or neither this user's nor the
            folder's owner's.
    """
    refuse_link(path)  # says why; O_NOFOLLOW does the same for a link that comes in between
    flags = _FLAGS[mode] | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    handle = os.open(path, flags, 0o666)
    try:
        _refuse_foreign(path, os.fstat(handle))
        if mode == "wb":
            os.ftruncate(handle, 0)
        file: IO[bytes] = os.fdopen(handle, mode, buffering)
    except BaseException:
        os.close(handle)
        raise
    return file


def _refuse_foreign(path: Path, found: os.stat_result) -> None:
    _refuse_irregular(path, found)
    if found.st_nlink > 1:
        raise OSError(errno.EMLINK, "it has a second name, by a hard link")
    if hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
        raise OSError(errno.EPERM, "it is another user's")


class UnfitFileError(OSError):
    """No regular file, or one of more bytes than may be; ``str()`` says which, without the path."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def open_regular(path: Path, *, follow: bool = True) -> Iterator[BinaryIO]:
    """A file for reading, never a pipe, a device or, unless ``follow``, a link: these may block or have no end.

    Raises:
        UnfitFileError: it is something else.
        OSError: it is not there, or cannot be opened.
    """
    _refuse_irregular(path, path.stat() if follow else path.lstat())  # opening a device may do something
    flags = os.O_RDONLY | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _refuse_irregular(path, os.fstat(file.fileno()))
        yield file


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """The content of a file of at most so many bytes, which may be anything after a crash.

    Raises:
        UnfitFileError: it is no regular file, or larger.
        OSError: it is not there, or cannot be read.
    """
    with open_regular(path, follow=follow) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise _too_large(path, most)
        return read_at_most(file, most, path)


def read_at_most(file: IO[bytes], most: int, path: Path) -> bytes:
    """The rest of an open file; ``path`` is for the error.

    Raises:
        UnfitFileError: there are more bytes.
    """
    parts, left = [], most + 1
    while left and (part := file.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise _too_large(path, most)
    return b"".join(parts)


def _too_large(path: Path, most: int) -> UnfitFileError:
    return UnfitFileError(errno.EFBIG, f"larger than {most} bytes", str(path))


def _refuse_irregular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnfitFileError(errno.EINVAL, "not a regular file", str(path))


def regular_size(path: Path) -> int:
    """Bytes of a regular file.

    Raises:
        OSError: it is not there, or it is something else.
    """
    found = path.stat()
    _refuse_irregular(path, found)
    return found.st_size


def sha256_of(path: Path) -> str | None:
    """Of a regular file's content, in hexadecimal digits; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(_CHUNK):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def refuse_device(path: Path) -> None:
    """Raise OSError where a device or a pipe is: as root, moving a file there would replace it."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a device or a pipe, not a file")


def cannot_write(path: Path, error: OSError) -> SetupError:
    """The error of a write that failed: what, where, what to do."""
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    fix = "free some space" if full else "choose a place that can be written to"
    return SetupError(f"cannot write ({error.strerror or error})", where=path, fix=fix)


@contextmanager
def stderr_silenced(remarks: re.Pattern[bytes] | None = None) -> Iterator[None]:
    """Inside, nothing reaches the process's stderr, from any thread: native code writes there past ``sys.stderr``.

    Args:
        remarks: lines to drop; all other lines are written to stderr afterwards. By default all lines are dropped.
    """
    with ExitStack() as opened:
        try:
            stderr = opened.enter_context(os.fdopen(os.dup(2), "wb"))
            if remarks is None:
                file: IO[bytes] = opened.enter_context(Path(os.devnull).open("wb"))
            else:
                file = opened.enter_context(tempfile.TemporaryFile())
        except OSError:  # stderr is closed, or no folder can be written into
            yield
            return
        with suppress(AttributeError, ValueError):
            sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)
            if remarks is not None:
                file.seek(0)
                stderr.writelines(line for line in file if not remarks.match(line))


# --- results: what is not known is null or an empty cell, never zero and never NaN


def finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "item"):  # a number of numpy, which is not imported here: that takes long
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON; NaN becomes null."""
    write_durably(path, (json.dumps(finite(content), indent=1) + "\n").encode())


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """CSV with the columns of the first row; None and NaN are empty cells."""
    columns = list(rows[0]) if rows else []
    lines = [csv_line(columns), *(csv_line([row.get(key) for key in columns]) for row in rows)] if rows else []
    write_durably(path, "".join(f"{line}\n" for line in lines).encode())


def csv_line(cells: Iterable[Any]) -> str:
    """Cells as one line of CSV, which no spreadsheet takes for a formula and no terminal obeys.

    A text that begins as a formula gets an apostrophe in front, as OWASP advises; numbers are as they are.
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([_cell(value) for value in cells])
    return line.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        return value
    text = escaped(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
