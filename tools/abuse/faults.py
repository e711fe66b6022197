"""``edge-sel`` on a disk that fails: a program that calls the command line after it has wrapped what writes.

    python tools/abuse/faults.py MODE NUMBER FOLDER LOG STAMPS finetune …

Every write, rename, fsync and removal below FOLDER is counted from 1 and noted in LOG; STAMPS is that of ``stamps.py``.
What happens at NUMBER:

``count``  nothing.
``kill``   SIGKILL instead of the call.
``torn``   half of the bytes are written, then SIGKILL.
``power``  SIGKILL instead of the call, and all that was not forced onto the disk is gone: appended bytes, renames whose
           folder was not forced; a renamed file that was not forced itself is there with nothing in it.
``full``   ENOSPC, and for every later write too.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

KINDS = ("write", "rename", "fsync", "remove")
MODES = ("kill", "torn", "power", "full")
UNSEEN = "journal.jsonl"
"""A thread writes it when it is time to: its calls would number the others differently in every run."""
_open, _os_open, _fsync, _replace, _rename, _unlink = io.open, os.open, os.fsync, os.replace, os.rename, os.unlink


class Disk:
    """What lies below a folder, as the programs see it and as a power cut would leave it.

    Args:
        mode: what happens.
        number: at which call, counted from 1.
        folder: only what lies below it is looked at.
        log: a file that every call is appended to.
    """

    def __init__(self, mode: str, number: int, folder: str, log: str) -> None:
        self._mode, self._number, self._count = mode, number, 0
        self._folder = os.path.join(os.path.realpath(folder), "")
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._forced: dict[str, bytes | None] = {}  # what a power cut leaves under each name that was touched
        self._renamed: dict[str, bytes | None] = {}  # what it leaves once the folder is forced

    def place(self, path: Any) -> str | None:
        """The real path if it is below the folder."""
        name = os.path.basename(os.fspath(path))
        full = os.path.join(os.path.realpath(os.path.dirname(os.fspath(path))), name)
        return full if (full + os.sep).startswith(self._folder) and name != UNSEEN else None

    def touch(self, path: str) -> None:
        """Note what lies here before the first change; what earlier processes left counts as forced."""
        self._forced.setdefault(path, _content(path))

    def call(self, kind: str, path: str, half: Callable[[], object] | None = None) -> None:
        """Count a call that is about to happen; fail if it is the one.

        Raises:
            OSError: the disk is full.
        """
        self._count += 1
        os.write(self._log, f"{self._count} {kind} {path.removeprefix(self._folder)}\n".encode())
        full = self._mode == "full" and self._count > self._number and kind == "write"
        if self._count != self._number and not full:
            return
        if self._mode == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self._mode == "torn" and half is not None:
            half()
        if self._mode == "power":
            self._cut()
        if self._mode != "count":
            os.kill(os.getpid(), signal.SIGKILL)

    def forced(self, path: str) -> None:
        """A file or folder has reached the disk."""
        if not os.path.isdir(path):
            self._forced[path] = _content(path)
            self._renamed.pop(path, None)
            return
        for name in [name for name in self._renamed if os.path.dirname(name) == path]:
            self._forced[name] = self._renamed.pop(name)

    def renamed(self, old: str, new: str, content: bytes | None) -> None:
        """A file has another name, whose content is what had been forced under the old one."""
        self._renamed[new] = content if self._forced[old] == content else b""
        self._renamed[old] = None

    def removed(self, path: str) -> None:
        """A name is gone, once its folder is forced."""
        self._renamed[path] = None

    def _cut(self) -> None:
        for path, content in self._forced.items():
            if self._renamed.get(path) == b"":
                content = b""
            if content is None:
                if os.path.exists(path):
                    _unlink(path)
            else:
                with _open(path, "wb") as file:
                    file.write(content)


def _content(path: str) -> bytes | None:
    try:
        with _open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def install(disk: Disk) -> None:
    """Wrap what Python writes with; before anything that keeps a reference of its own is imported."""

    class Watched(io.FileIO):
        place: str

        def write(self, data: Any) -> int:
            view = memoryview(data).cast("B")
            disk.call("write", self.place, lambda: io.FileIO.write(self, view[: len(view) // 2]))
            return io.FileIO.write(self, data)

    handles: dict[int, str] = {}  # opened by their number, to be made files of

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        place = disk.place(path) if flags & (os.O_WRONLY | os.O_RDWR) else None
        if place is not None:
            disk.touch(place)
        handle = _os_open(path, flags, *rest, **more)
        handles.pop(handle, None)
        if place is not None:
            handles[handle] = place
        return handle

    def watched_open(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        place = None
        if set(mode) & set("wxa+"):
            place = handles.pop(file, None) if isinstance(file, int) else disk.place(file)
        if place is None:
            return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        disk.touch(place)
        raw = Watched(file, mode.replace("b", "").replace("t", ""), opener=opener)
        raw.place = place
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def fsync(handle: Any) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        place = disk.place(os.readlink(f"/proc/self/fd/{number}"))
        if place is not None:
            disk.call("fsync", place)
        _fsync(handle)
        if place is not None:
            disk.forced(place)

    def renaming(real: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, **rest: Any) -> None:
            old, new = disk.place(source), disk.place(target)
            if old is None or new is None:
                return real(source, target, **rest)
            disk.touch(old)
            disk.touch(new)
            disk.call("rename", new)
            content = _content(old)
            real(source, target, **rest)
            disk.renamed(old, new, content)

        return rename

    def unlink(path: Any, **rest: Any) -> None:
        place = disk.place(path)
        if place is None or not os.path.lexists(place):
            return _unlink(path, **rest)
        disk.touch(place)
        disk.call("remove", place)
        _unlink(path, **rest)
        disk.removed(place)

    builtins.open = io.open = watched_open
    os.open = opened
    os.fsync, os.replace, os.rename = fsync, renaming(_replace), renaming(_rename)
    os.unlink = os.remove = unlink


if __name__ == "__main__":
    install(Disk(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
    import stamps

    stamps.install(sys.argv[5])
    sys.argv[1:6] = []
    del sys.path[0]  # this folder
    from edge_sel.cli.main import main

    main()
