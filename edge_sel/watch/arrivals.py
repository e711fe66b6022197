"""New images: files in a folder as they come, or frames on stdin."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import psutil

from edge_sel.data.folder import IMAGE_SUFFIXES, is_clutter
from edge_sel.watch.records import Records

TICK_S = 0.5
"""Between two looks where nothing happens."""
POLL_S = 2.0
"""Between two scans of a folder whose changes nobody tells."""
RESCAN_S = 600.0
"""Between two scans of one whose changes are told: the kernel may lose some in a burst."""
SCAN_SHARE = 0.02
"""Share of the time that scanning may take."""
AT_ONCE = 500
MOST_FRAME_BYTES = 32 << 20
FRAMES = 8
"""That wait; older ones are dropped."""
_SHARED = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs", "virtiofs", "vboxsf"}
"""File systems of which the kernel tells only its own changes."""


class Arrival(NamedTuple):
    """A file that is new, or has changed; of a frame its content."""

    source: str
    mtime_ns: int
    size: int
    content: bytes | None = None


@dataclass
class FolderArrivals:
    """New files below a folder: an endless iterator of lists, empty at ticks where nothing has come.

    Attributes:
        folder: that is watched, with all folders below.
        records: know which files were seen.
        skip: folders that are not looked at, such as the home.
        why_polling: empty where the kernel tells of changes.
    """

    folder: Path
    records: Records
    skip: tuple[Path, ...] = ()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    poll_s: float = POLL_S
    why_polling: str = ""

    def __iter__(self) -> Iterator[list[Arrival]]:
        changes = self._changes()
        scanned_s, period_s = -1e9, 0.0
        changed: set[str] = set()
        for paths in changes:
            changed |= paths
            now_s = self.clock()
            if now_s - scanned_s >= period_s:
                yield from self._scan()
                scanned_s = self.clock()
                least_s = self.poll_s if self.why_polling else RESCAN_S
                period_s = max(least_s, (scanned_s - now_s) / SCAN_SHARE)
                changed.clear()
            elif changed:
                found = [file for path in sorted(changed) if (file := self._file(path)) is not None]
                changed.clear()
                yield [Arrival(*file) for file in self.records.unknown(found)]
            else:
                yield []

    def once(self) -> Iterator[list[Arrival]]:
        """What is there now."""
        return self._scan()

    def _changes(self) -> Iterator[set[str]]:
        """Sets of paths that have changed; empty ones at ticks."""
        try:
            from watchfiles import watch
        except ImportError:
            self.why_polling = "watchfiles is not installed: pip install 'edge-sel[watch]'"
        else:
            self.why_polling = _shared_by(self.folder)
        if not self.why_polling:
            try:
                for changes in watch(
                    self.folder, watch_filter=None, debounce=400, step=50, rust_timeout=int(1000 * TICK_S),
                    yield_on_timeout=True, raise_interrupt=True, recursive=True,
                ):  # fmt: skip
                    yield {path for _, path in changes}
            except (OSError, RuntimeError) as error:  # no more watches can be had, or the folder has gone
                self.why_polling = str(error) or type(error).__name__
        while True:
            yield set()
            self.sleep(min(TICK_S, self.poll_s))

    def _scan(self) -> Iterator[list[Arrival]]:
        """All files that were not seen, a part at a time."""
        part: list[tuple[str, int, int]] = []
        for file in self._walk():
            part.append(file)
            if len(part) == AT_ONCE:
                yield [Arrival(*file) for file in self.records.unknown(part)]
                part = []
        yield [Arrival(*file) for file in self.records.unknown(part)]

    def _walk(self) -> Iterator[tuple[str, int, int]]:
        folders = [str(self.folder)]
        barred = {str(path) for path in self.skip}
        while folders:
            try:
                entries = sorted(os.scandir(folders.pop()), key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                with suppress(OSError):
                    if is_clutter(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path not in barred:
                            folders.append(entry.path)
                    elif (file := self._file(entry.path)) is not None:
                        yield file

    def _file(self, path: str) -> tuple[str, int, int] | None:
        """(source, mtime_ns, size) of an image file; None of what is none."""
        if Path(path).suffix.lower() not in IMAGE_SUFFIXES or is_clutter(Path(path).name):
            return None
        if any(Path(path).is_relative_to(other) for other in self.skip):
            return None
        try:
            info = os.stat(path)  # noqa: PTH116 - for 100 000 files
        except (OSError, ValueError):
            return None
        source = os.fsencode(path).decode("utf-8", "surrogateescape")
        return (source, info.st_mtime_ns, info.st_size) if _can_be_stored(source) else None


def _can_be_stored(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8, which SQLite takes no text of
        return False
    return True


def _shared_by(folder: Path) -> str:
    """Why the kernel does not tell of all changes; empty where it does."""
    with suppress(OSError, psutil.Error):
        mounts = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
        if mounts and (kind := max(mounts, key=lambda part: len(part.mountpoint)).fstype) in _SHARED:
            return f"the folder is on a network share ({kind})"
    return ""


class FrameArrivals:
    """JPEG frames on a stream, such as ``ffmpeg -f image2pipe -c:v mjpeg -`` writes them; ends where the stream does.

    Who reads slower than they come gets the latest ones; ``dropped`` counts the others.
    """

    def __init__(self, stream: IO[bytes], clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._stream, self._clock_ns = stream, clock_ns
        self._frames: queue.Queue[bytes | None] = queue.Queue(FRAMES)
        self.dropped = 0
        self.why_polling = ""

    def __iter__(self) -> Iterator[list[Arrival]]:
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        number = 0
        while True:
            try:
                frame = self._frames.get(timeout=TICK_S)
            except queue.Empty:
                yield []
                continue
            if frame is None:
                return
            number += 1
            yield [Arrival(f"stdin#{number}", self._clock_ns(), len(frame), frame)]

    def _read(self) -> None:
        for frame in split_frames(self._stream):
            while True:
                try:
                    self._frames.put_nowait(frame)
                    break
                except queue.Full:
                    with suppress(queue.Empty):
                        self._frames.get_nowait()
                        self.dropped += 1
        self._frames.put(None)


def split_frames(stream: IO[bytes]) -> Iterator[bytes]:
    """JPEG files that stand one after the other; what is between them, or larger than a frame may be, is left out."""
    begin, end = b"\xff\xd8\xff", b"\xff\xd9"
    held = b""
    while block := _some(stream):
        held += block
        while True:
            start = held.find(begin)
            if start < 0:
                held = held[-2:]
                break
            # A thumbnail inside has an end too; the frame's own is followed by the next frame.
            place = held.find(end + begin, start)
            if place < 0:
                held = held[start:]
                if len(held) > MOST_FRAME_BYTES:
                    held = held[len(begin) :]
                    continue
                break
            yield held[start : place + 2]
            held = held[place + 2 :]
    last = held.rfind(end)
    if held.startswith(begin) and last > 0:
        yield held[: last + 2]


def _some(stream: IO[bytes]) -> bytes:
    read = getattr(stream, "read1", stream.read)
    try:
        block: bytes = read(1 << 16)
    except (OSError, ValueError):
        return b""
    return block
