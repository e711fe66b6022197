"""The folder of a run belongs to one process at a time, and a run that is refused leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from edge_sel.edge.free_memory import limited_memory
from edge_sel.edge.outputs.session_folder import Notice
from edge_sel.errors import SetupError, UsageError
from edge_sel.files import cannot_write, open_no_link
from edge_sel.runs.lock import BusyError, hold_lock
from edge_sel.runs.stop_signal import StopSignal

LOCK = ".lock"


class Held(NamedTuple):
    """The folder is ours."""

    notices: tuple[Notice, ...]
    """Events to begin with."""
    should_stop: Callable[[], str | None]


@contextmanager
def hold_run(out: Path, should_stop: Callable[[], str | None] | None = None) -> Iterator[Held]:
    """Hold a run's folder, made where it is missing; folders that end up empty are removed.

    Meanwhile this process may take no more memory than is free (``limited_memory``), and without ``should_stop`` its
    signals stop the run so that it can be resumed (``StopSignal``).

    Raises:
        UsageError: it is a file, or another process holds it.
        SetupError: it cannot be made or written to.
    """
    missing: list[Path] = []
    with suppress(OSError):  # such as a name that is too long, which is told below
        missing += [folder for folder in (out, *out.parents) if not folder.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        prepare_folder(out)
        try:
            locked = stack.enter_context(hold_lock(out / LOCK))
        except BusyError as error:
            what = f"{error} works in this folder"
            raise UsageError(what, where=out, fix="wait until it is done, or another --out") from None
        except OSError as error:
            raise cannot_write(out / LOCK, error) from error
        stack.enter_context(limited_memory())
        notices = () if locked else (("unlocked", {"why": "the file system has no locks"}),)
        yield Held(notices, should_stop or stack.enter_context(StopSignal()))


def prepare_folder(out: Path) -> None:
    """Make the run's folder, or say at once why that will not work.

    Raises:
        UsageError: it is a file.
        SetupError: it cannot be made or written to.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UsageError("--out is a file", where=out, fix="name a folder")
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".edge-sel-write-test"
        open_no_link(probe, "wb").close()
        probe.unlink()
    except OSError as error:
        raise SetupError(
            f"cannot write to --out ({error.strerror})", where=out, fix="choose a folder you may write to"
        ) from error


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # what is not empty stays
        for folder in folders:
            folder.rmdir()
