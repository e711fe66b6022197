"""The files of a pack, in a folder or in one zip: regular files only, and never more bytes than were announced."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from edge_sel.errors import PackError
from edge_sel.files import UnfitFileError, open_regular, read_at_most, read_regular

MOST_DIRECTORY_BYTES = 1 << 20
"""Of a zip's table of contents."""
MOST_RATIO, SMALL = 100, 1 << 20
"""A file larger than ``SMALL`` that was compressed more than this is no weights and no graph."""


@contextmanager
def open_container(path: Path) -> Iterator[PackFolder | PackZip]:
    """A pack's files; reading raises what ``zipfile`` and the system raise.

    Raises:
        PackError: ``path`` is neither a folder nor a regular file.
        OSError: it cannot be opened.
        zipfile.BadZipFile: it is no zip.
    """
    if path.is_dir():
        yield PackFolder(path)
        return
    try:
        with open_regular(path) as file, zipfile.ZipFile(_Thrifty(file)) as archive:
            yield PackZip(path, archive)
    except UnfitFileError as error:
        raise PackError(str(error), where=path, fix="copy it to one") from error


def write_zip(file: Path | IO[bytes], content: Mapping[str, bytes]) -> None:
    """Deflate with a fixed date, so that equal packs are equal files."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


@contextmanager
def _refusing(pack: Path, name: str) -> Iterator[None]:
    """PackError where a file of the pack is no regular one, or too large."""
    try:
        yield
    except UnfitFileError as error:
        raise PackError(f"{name} is damaged: {error}", where=pack, fix="copy the pack again") from error


class PackFolder:
    """An opened pack that is a folder; ``PackZip`` is one that is a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __contains__(self, name: str) -> bool:
        """Whether there is a file of that name."""
        try:
            return not stat.S_ISDIR((self._path / name).lstat().st_mode)
        except FileNotFoundError:
            return False

    def names(self) -> set[str]:
        """Of all that is there, folders too."""
        return {child.name for child in self._path.iterdir()}

    def read(self, name: str, most: int) -> bytes:
        """Its content; PackError if it is no regular file, or of more than ``most`` bytes."""
        with _refusing(self._path, name):
            return read_regular(self._path / name, most, follow=False)


class PackZip:
    """As ``PackFolder``."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._members: dict[str, list[zipfile.ZipInfo]] = {}
        for info in archive.infolist():
            self._members.setdefault(info.filename, []).append(info)

    def __contains__(self, name: str) -> bool:
        """As of a folder."""
        return name in self._members

    def names(self) -> set[str]:
        """As of a folder."""
        return set(self._members)

    def read(self, name: str, most: int) -> bytes:
        """As of a folder; nothing that is larger than it was announced, or compressed beyond reason."""
        info, *others = self._members[name]
        kind = stat.S_IFMT(info.external_attr >> 16)
        if others or kind not in (0, stat.S_IFREG):
            raise PackError(f"{name} occurs twice, or is not a regular file", where=self._path, fix="export it again")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise PackError(f"{name} is encrypted or compressed in another way", where=self._path)
        if info.file_size > most:
            raise PackError(f"{name} is damaged: larger than {most} bytes", where=self._path, fix="copy the pack again")
        if info.file_size > max(SMALL, MOST_RATIO * info.compress_size):
            raise PackError(
                f"{name} is compressed {MOST_RATIO} times or more ({info.file_size} bytes)", where=self._path
            )
        with _refusing(self._path, name), self._archive.open(info) as file:
            return read_at_most(file, info.file_size, self._path)


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
