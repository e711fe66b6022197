"""The files of a pack, in a folder or in one zip: regular files only, and never more bytes than were announced."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Protocol

from edge_sel.errors import PackError

MOST_DIRECTORY_BYTES = 1 << 20
"""Of a zip's table of contents."""
MOST_RATIO, SMALL = 100, 1 << 20
"""A file larger than ``SMALL`` that was compressed more than this is no weights and no graph."""
_CHUNK = 1 << 20


class PackFiles(Protocol):
    """An opened pack."""

    def __contains__(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def names(self) -> set[str]:
        """Of all that is there, folders too."""

    def read(self, name: str, most: int) -> bytes:
        """Its content; PackError if it is no regular file, or of more than ``most`` bytes."""


@contextmanager
def open_container(path: Path) -> Iterator[PackFiles]:
    """A pack's files; reading raises what ``zipfile`` and the system raise.

    Raises:
        PackError: ``path`` is neither a folder nor a regular file.
        OSError: it cannot be opened.
        zipfile.BadZipFile: it is no zip.
    """
    if path.is_dir():
        yield _Folder(path)
    else:
        with open_regular(path, follow=True) as file, zipfile.ZipFile(_Thrifty(file)) as archive:
            yield _Zip(path, archive)


def write_zip(file: Path | IO[bytes], content: Mapping[str, bytes]) -> None:
    """Deflate with a fixed date, so that equal packs are equal files."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


@contextmanager
def open_regular(path: Path, *, follow: bool) -> Iterator[BinaryIO]:
    """A file for reading, never a pipe, a device or, unless ``follow``, a link: these may block or have no end.

    Raises:
        PackError: it is something else.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if not stat.S_ISREG((path.stat() if follow else path.lstat()).st_mode):  # opening a device may do something
        raise PackError("not a regular file", where=path, fix="copy it to one")
    with os.fdopen(os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0))), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise PackError("not a regular file", where=path, fix="copy it to one")
        yield file


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __contains__(self, name: str) -> bool:
        try:
            return not stat.S_ISDIR((self._path / name).lstat().st_mode)
        except FileNotFoundError:
            return False

    def names(self) -> set[str]:
        return {child.name for child in self._path.iterdir()}

    def read(self, name: str, most: int) -> bytes:
        with open_regular(self._path / name, follow=False) as file:
            if os.fstat(file.fileno()).st_size > most:
                raise _too_large(self._path, name, most)
            return _read_at_most(file, most, self._path, name)


class _Zip:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._members: dict[str, list[zipfile.ZipInfo]] = {}
        for info in archive.infolist():
            self._members.setdefault(info.filename, []).append(info)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> set[str]:
        return set(self._members)

    def read(self, name: str, most: int) -> bytes:
        info, *others = self._members[name]
        kind = stat.S_IFMT(info.external_attr >> 16)
        if others or kind not in (0, stat.S_IFREG):
            raise PackError(f"{name} occurs twice, or is not a regular file", where=self._path, fix="export it again")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise PackError(f"{name} is encrypted or compressed in another way", where=self._path)
        if info.file_size > most:
            raise _too_large(self._path, name, most)
        if info.file_size > max(SMALL, MOST_RATIO * info.compress_size):
            raise PackError(
                f"{name} is compressed {MOST_RATIO} times or more ({info.file_size} bytes)", where=self._path
            )
        with self._archive.open(info) as file:
            return _read_at_most(file, info.file_size, self._path, name)


class _Thrifty:
    """A file of which ``zipfile`` cannot read more at once than a table of contents may have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MOST_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a table of contents of {size} bytes")
        content = self._file.read(MOST_DIRECTORY_BYTES + 1 if size < 0 else size)
        if len(content) > MOST_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("no table of contents at its end")
        return content


def read_regular(path: Path, most: int) -> bytes:
    """A file of at most so many bytes.

    Raises:
        PackError: it is larger, or not a regular file.
        OSError: it cannot be read.
    """
    with open_regular(path, follow=True) as file:
        return _read_at_most(file, most, path, path.name)


def _read_at_most(file: IO[bytes], most: int, path: Path, name: str) -> bytes:
    parts, left = [], most + 1
    while left and (part := file.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise _too_large(path, name, most)
    return b"".join(parts)


def _too_large(path: Path, name: str, most: int) -> PackError:
    return PackError(f"{name} is damaged: larger than {most} bytes", where=path, fix="copy the pack again")
