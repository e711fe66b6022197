"""Read a run for the report: ``run.json`` where there is one, else what the events tell of a run that is not over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sel.edge.outputs.earlier import PastRun, past_runs, read_result
from edge_sel.edge.outputs.logs import POWER, PowerRow, read_power
from edge_sel.edge.outputs.run_file import read_events
from edge_sel.errors import UsageError


@dataclass(frozen=True)
class Record:
    """A run.

    Attributes:
        past: its verdict, accuracy and joules.
        result: ``run.json``; of a run that is not over, as many of its keys as the events tell.
        events: of ``events.jsonl``.
        power: joules and degrees over time.
    """

    past: PastRun
    result: dict[str, Any]
    events: Sequence[dict[str, Any]]
    power: Sequence[PowerRow]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.past.folder.resolve().name

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """An entry per finished epoch."""
        found: list[dict[str, Any]] = self.result.get("epochs", [])
        return found

    @property
    def classes(self) -> list[str]:
        """Their names."""
        found: list[str] = self.result.get("classes", [])
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """Values by name."""
        return {name: setting["value"] for name, setting in self.result.get("settings", {}).items()}


def read_records(paths: Sequence[Path]) -> list[Record]:
    """The runs at these paths, each a run or a folder of runs; in this order, none twice.

    Raises:
        UsageError: a path is no folder, or has no runs.
    """
    found: dict[Path, Record] = {}
    for path in paths:
        runs = past_runs(path)
        if not runs:
            raise UsageError("no run of `edge-sel finetune`", where=path, fix="name the --out folder of a run")
        for past in runs:
            found.setdefault(past.folder.resolve(), _read(past))
    return list(found.values())


def _read(past: PastRun) -> Record:
    events = read_events(past.folder / "events.jsonl")
    result = None if past.verdict == "damaged" else read_result(past.folder)[0]
    return Record(past, _of_events(events) if result is None else result, events, read_power(past.folder / POWER))


def _of_events(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"epochs": [], "decisions": []}
    for event in events:
        details = {key: value for key, value in event.items() if key not in ("event", "t_s")}
        if event["event"] == "started":
            found["images"] = {"train": event.get("images"), "validation": event.get("validation")}
        elif event["event"] == "evaluated":
            found["accuracy"] = event.get("accuracy")
        elif event["event"] == "epoch":
            # A process that was cut may have finished an epoch that the next one did again.
            earlier = [epoch for epoch in found["epochs"] if epoch.get("epoch") != event.get("epoch")]
            found["epochs"] = [*earlier, details]
        elif event["event"] == "stage_begun":
            found["decisions"].append(details)
    return found
