"""The folder of a run belongs to one process at a time, and a run that is refused leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edge_sel.edge.outputs.session_folder import Notice
from edge_sel.errors import UsageError
from edge_sel.files import cannot_write
from edge_sel.runs.lock import BusyError, hold_lock

LOCK = ".lock"


@contextmanager
def hold_folder(out: Path, make: Callable[[Path], None]) -> Iterator[list[Notice]]:
    """Hold a run's folder, made by ``make`` where it is missing; folders that end up empty are removed.

    Yields:
        Events to begin with.

    Raises:
        UsageError: another process holds it.
        SetupError: it cannot be written to.
    """
    missing: list[Path] = []
    with suppress(OSError):  # such as a name that is too long, which ``make`` tells
        missing += [folder for folder in (out, *out.parents) if not folder.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        make(out)
        try:
            locked = stack.enter_context(hold_lock(out / LOCK))
        except BusyError as error:
            what = f"{error} works in this folder"
            raise UsageError(what, where=out, fix="wait until it is done, or another --out") from None
        except OSError as error:
            raise cannot_write(out / LOCK, error) from error
        yield [] if locked else [("unlocked", {"why": "the file system has no locks"})]


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # what is not empty stays
        for folder in folders:
            folder.rmdir()
