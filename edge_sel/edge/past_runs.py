"""The runs in a folder: what each came to, as far as its files tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_sel.edge.outputs.earlier import JOURNAL, look_into
from edge_sel.errors import UsageError

Verdict = Literal["shipped", "kept", "stopped", "unfinished", "damaged"]


@dataclass(frozen=True)
class PastRun:
    """One run.

    Attributes:
        folder: of the run.
        verdict: the new model ``shipped`` or the original one was ``kept``; ``stopped``: by a limit, with a result so
            far, or by a signal, without one; ``unfinished``: it runs, or was cut; ``damaged``: its result cannot be
            read.
        why: it was stopped; empty otherwise.
        plan: that was asked for; empty where nothing tells it.
        before: accuracy 0..1 of the original model; ``after`` of the new one; None if unknown.
        on: the images of that accuracy, ``test`` or ``guard`` (validation).
        energy_j: joules so far; ``energy_source`` as in ``run.json``.
        time_s: seconds.
    """

    folder: Path
    verdict: Verdict
    why: str = ""
    plan: str = ""
    before: float | None = None
    after: float | None = None
    on: str = ""
    energy_j: float | None = None
    energy_source: str = ""
    time_s: float | None = None


def past_runs(root: Path) -> list[PastRun]:
    """The runs in the folders of ``root``, or ``root`` itself if it is one; by name.

    Raises:
        UsageError: there is no such folder.
    """
    if not root.is_dir():
        raise UsageError("no such folder of runs", where=root, fix="name the folder that --out folders lie in")
    if _is_run(root):
        return [*_read(root)]
    return [run for folder in sorted(root.iterdir()) if folder.is_dir() and _is_run(folder) for run in _read(folder)]


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() or (folder / JOURNAL).is_file()


def _read(folder: Path) -> Iterator[PastRun]:
    earlier = look_into(folder)
    spent, result = earlier.spent(), earlier.result
    if result is not None and "accuracy" not in result and not earlier.began:
        return  # a run of `edge-sel reference`
    if result is None:
        saved, known = earlier.booked is not None, earlier.began
        signalled = saved and earlier.told is not None and earlier.ended
        verdict: Verdict = "stopped" if signalled else "unfinished"
        if earlier.result_damaged and not saved:  # --resume refuses it, too
            verdict = "damaged"
        yield PastRun(
            folder, verdict, "signal" if signalled else "", energy_j=spent.total_j if known else None,
            energy_source=(known and spent.source) or "", time_s=spent.seconds if known else None,
        )  # fmt: skip
        return
    try:
        yield _of_result(folder, result)
    except (KeyError, TypeError, ValueError):
        yield PastRun(folder, "damaged")


def _of_result(folder: Path, result: dict[str, Any]) -> PastRun:
    stopped, accuracy, energy = str(result["stopped"]), result["accuracy"], result["energy"]
    verdict: Verdict = "stopped" if stopped != "done" else "shipped" if result["shipped"] else "kept"
    return PastRun(
        folder, verdict, "" if stopped == "done" else stopped, str(result["plan"]), _number(accuracy["before"]),
        _number(accuracy["after"]), str(accuracy["on"]), _number(energy["total_j"]), str(energy["source"]),
        _number(result["time_s"]),
    )  # fmt: skip


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
