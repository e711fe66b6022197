"""Runs on disk, ``OUT/<system>/seed-<n>/``: a checkpoint while it runs, ``history.csv`` and in the end ``run.json``.

Without torch, so a device can read them too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sel.arrays import Arrays
from edge_sel.runs.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from edge_sel.runs.identity import Identity
from edge_sel.runs.tables import write_json, write_table

Row = dict[str, Any]
"""One epoch, by the columns of ``history.csv``."""
Result = dict[str, Any]
"""A finished run, as ``run.json`` holds it."""

_RUN = "run.json"
_TEXTS = ("system", "scale", "label", "data_name", "weights")
_FIGURES = ("epochs", "test_full", "test_100", "nominal_flops_t", "executed_flops_t", "time_s", "last_sparsity",
            "active_rate")  # fmt: skip
_NO_FIGURES = {"phase", "energy_source", "meter", "throttled", "per_class"}
"""What in a row or a summary is neither a number nor null."""


class RunFolder:
    """The folder of one system and seed."""

    def __init__(self, out: Path, system: str, seed: int) -> None:
        self.path = out / system / f"seed-{seed}"

    def save(self, tensors: Arrays, rows: Sequence[Row], identity: Identity) -> None:
        """The state after an epoch, and its table."""
        save_checkpoint(self.path, tensors, {"rows": rows}, identity)
        write_table(self.path / "history.csv", rows)

    def load(self) -> tuple[Arrays, list[Row], Identity] | None:
        """What ``save`` wrote last; before that if it is damaged; None if both are."""
        found = load_checkpoint(self.path)
        return None if found is None else (found[0], found[1]["rows"], found[2])

    def finish(self, rows: Sequence[Row], result: Result) -> None:
        """The run is over: its table and its result; the checkpoints go."""
        write_table(self.path / "history.csv", rows)
        write_json(self.path / _RUN, result)
        remove_checkpoints(self.path)


def read_result(folder: Path) -> Result | None:
    """The result of one run; None if it is not over, or its file is none of ours, such as a fine-tune's."""
    try:
        found = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        return found if _is_result(found) else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def list_results(out: Path) -> list[Result]:
    """The results of all finished runs in a folder, by system and seed."""
    found = [read_result(path.parent) for path in sorted(out.glob(f"*/seed-*/{_RUN}"))]
    return [result for result in found if result is not None]


def is_number(value: object) -> bool:
    """Whether it can be calculated with: no truth value, no NaN, and not too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_result(found: Any) -> bool:
    """Whether all that comparing reads is of its kind; may raise instead where it is not."""
    summary, rows = found["summary"], found["rows"]
    tables = [summary, *rows, *summary["per_class"].values()]
    figures = [value for table in tables for key, value in table.items() if key not in _NO_FIGURES]
    needed = [*(summary[key] for key in _FIGURES), *(row["visited"] for row in rows)]
    texts = [*(found[key] for key in _TEXTS), summary["energy_source"], *summary.get("throttled", ())]
    return (
        isinstance(rows, list)
        and isinstance(found["identity"], dict)
        and isinstance(found["seed"], int)
        and all(isinstance(text, str) for text in texts)
        and all(is_number(value) for value in needed)
        and all(value is None or is_number(value) for value in [*figures, summary["energy_j"], summary["net_j"]])
        and summary["epochs"] > 0
        and "meter" in summary
    )
