"""Read the files that earlier processes of a run left in its folder. The images are not needed for this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_sel.edge.energy import LOST, Spent, beyond
from edge_sel.edge.outputs.run_file import JournalLine, read_run_file
from edge_sel.errors import BudgetSpentError, UsageError
from edge_sel.files import sha256_of
from edge_sel.runs.checkpoint import load_checkpoint, unflatten
from edge_sel.runs.journal import read_journal
from edge_sel.schema import SchemaError, checked
from edge_sel.units import format_energy

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Earlier:
    """What was found in the folder of a run.

    Attributes:
        result: the content of ``run.json``; None if there is no such file, or no result in it.
        trouble: why a ``run.json`` that is there cannot be read; empty if it can, or there is none.
        last_line: of the journal.
        journal_damaged: a line before the last one is damaged.
        booked: what was spent by the newest checkpoint; None if there is no checkpoint.
        forecast: the governor's latest forecast.
    """

    result: dict[str, Any] | None = None
    trouble: str = ""
    last_line: dict[str, Any] | None = None
    journal_damaged: bool = False
    booked: Spent | None = None
    forecast: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def began(self) -> bool:
        """Whether there is a checkpoint to continue from, or spending to count."""
        return self.booked is not None or self.last_line is not None

    @property
    def ended(self) -> bool:
        """Whether the last process ended in order; otherwise it was killed or lost power."""
        return self.last_line is None or self.last_line["at"] == "end"

    def cuts(self, every_s: float) -> int:
        """How many processes in a row were killed or lost power; one that ran for ``every_s`` seconds starts at 1."""
        if self.last_line is None or self.ended:
            return 0
        return 1 + (0 if self.last_line["up_s"] >= every_s else int(self.last_line["cuts"]))

    def spent(self) -> Spent:
        """By all processes of the run so far."""
        booked = self.booked or Spent()
        return booked if self.last_line is None else booked.plus_phase(LOST, beyond(self.last_line, booked))


def look_into(out: Path) -> Earlier:
    """Read result, journal and checkpoint; any of them may be missing or damaged."""
    result, trouble = read_result(out)
    last_line, journal_damaged = read_journal(out / JOURNAL)
    try:
        last_line = None if last_line is None else checked(JournalLine, last_line)
    except SchemaError:
        last_line, journal_damaged = None, True
    loaded, booked, forecast = load_checkpoint(out / "checkpoints"), None, {}
    if loaded is not None:
        scalars, start = loaded[1], "run_spent/"
        try:
            inner = {name.removeprefix(start): value for name, value in scalars.items() if name.startswith(start)}
            booked, forecast = unflatten(Spent, {}, inner), dict(scalars["forecast"])
        except (KeyError, TypeError, ValueError):  # another version's: told when the run is continued
            pass
    if last_line is not None:  # it knows the steps since the checkpoint, too
        forecast |= {name: value for name, value in last_line["forecast"].items() if value}
    return Earlier(result, trouble, last_line, journal_damaged, booked, forecast)


def read_result(out: Path) -> tuple[dict[str, Any] | None, str]:
    """The content of ``run.json``, None if there is no result; and why a file that is there cannot be read."""
    try:
        return read_run_file(out / "run.json"), ""
    except FileNotFoundError:
        return None, ""
    except (OSError, SchemaError) as error:
        return None, str(error) or type(error).__name__


def damaged_outputs(out: Path, result: Mapping[str, Any]) -> list[str]:
    """Names of the result files that are missing, differ from their sha256, or are none of the folder's."""
    outputs = result.get("outputs") or {}
    return [name for name, digest in outputs.items() if Path(name).name != name or sha256_of(out / name) != digest]


def exhausted(earlier: Earlier, out: Path, budget_j: float | None) -> dict[str, Any] | None:
    """The result of a run whose energy budget does not suffice for another step; None if the run may go on.

    Raises:
        BudgetSpentError: there is no result, and the budget does not suffice to make one.
    """
    spent, result = earlier.spent(), earlier.result
    if budget_j is None or not earlier.began or spent.total_j is None:
        return None
    closing_j, step_j = (earlier.forecast.get(key) or 0.0 for key in ("closing_j", "step_j"))
    if result is None:
        if spent.total_j + closing_j > budget_j:
            end = f" and the end takes {format_energy(closing_j)}" if closing_j else ""
            raise BudgetSpentError(
                f"the energy budget is used up, {format_energy(spent.total_j)} of {format_energy(budget_j)} spent{end}",
                where=out,
                fix="--resume with a larger --energy-budget",
            )
        return None
    if result["stopped"] == "done" or damaged_outputs(out, result):
        return None
    if budget_j - spent.total_j - closing_j > step_j:
        return None
    energy = {**result.get("energy", {}), **spent.to_json()}
    return {**result, "stopped": "budget", "energy": energy, "time_s": spent.seconds}


# --- Many runs


PastVerdict = Literal["shipped", "kept", "stopped", "unfinished", "damaged"]


@dataclass(frozen=True)
class PastRun:
    """One run in a folder of runs.

    Attributes:
        folder: of the run.
        verdict: ``shipped``: the new model replaced the original one. ``kept``: the original model stayed.
            ``stopped``: a limit stopped the run, and there is a result; or a signal did, and there is none.
            ``unfinished``: the run still works, was killed, or lost power. ``damaged``: the result cannot be read.
        why: reason of a stop, or what is wrong with the result; empty for other verdicts.
        plan: the setting ``plan``; empty if unknown.
        before: accuracy 0..1 of the original model; None if unknown.
        after: accuracy 0..1 of the new model; None if unknown.
        on: the images of these accuracies, ``test`` or ``validation`` (validation).
        energy_j: joules so far; None if unknown.
        energy_source: as in ``run.json``; empty if unknown.
        time_s: seconds so far; None if unknown.
    """

    folder: Path
    verdict: PastVerdict
    why: str = ""
    plan: str = ""
    before: float | None = None
    after: float | None = None
    on: str = ""
    energy_j: float | None = None
    energy_source: str = ""
    time_s: float | None = None


def past_runs(root: Path) -> list[PastRun]:
    """The runs in the folders of ``root``, sorted by name; only ``root`` itself if it is the folder of a run.

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
        signalled = saved and earlier.last_line is not None and earlier.ended
        verdict: PastVerdict = "stopped" if signalled else "unfinished"
        why = "signal" if signalled else ""
        if earlier.trouble and not saved:  # --resume refuses it, too
            verdict, why = "damaged", f"run.json: {earlier.trouble}"
        yield PastRun(
            folder, verdict, why, energy_j=spent.total_j if known else None,
            energy_source=(known and spent.source) or "", time_s=spent.seconds if known else None,
        )  # fmt: skip
        return
    try:
        yield _of_result(folder, result)
    except KeyError as error:
        yield PastRun(folder, "damaged", f"run.json has no {error.args[0]}")


def _of_result(folder: Path, result: dict[str, Any]) -> PastRun:
    stopped, accuracy, energy = str(result["stopped"]), result["accuracy"], result["energy"]
    verdict: PastVerdict = "stopped" if stopped != "done" else "shipped" if result["shipped"] else "kept"
    return PastRun(
        folder, verdict, "" if stopped == "done" else stopped, result["plan"], accuracy["before"], accuracy["after"],
        accuracy["on"], energy["total_j"], energy["source"] or "", result["time_s"],
    )  # fmt: skip
