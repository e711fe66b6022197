"""An entry per epoch, and ``history.csv``: the columns of the published benchmark, then ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_sel.edge.energy import Spent
from edge_sel.edge.evaluate import Evaluation
from edge_sel.edge.progress import Progress
from edge_sel.files import finite, write_table
from edge_sel.power.figure import EnergyFigure
from edge_sel.sel.embarrassment import confidence

PUBLISHED = ("epoch", "stage", "train_acc", "train_loss", "test_full", "test_100", "flops_T", "time_s", "sparsity")
"""Columns of the SEL benchmark's CSV files; ``flops_T`` is nominal and cumulative, as theirs is."""

OURS = (
    "plan", "guard_acc", "guard_loss", "energy_j", "net_j", "energy_source", "meter", "power_w", "temp_c",
    "active_rate", "gradient_kept", "executed_flops_T",
)  # fmt: skip


def epoch_entry(
    progress: Progress,
    training: Mapping[str, Any],
    validation: Evaluation,
    spent: Spent,
    figure: EnergyFigure,
    classes: Sequence[str],
) -> dict[str, Any]:
    """What an epoch did, what it cost, where the validation set stands, and E, C and accuracy of each class.

    Args:
        progress: before the epoch is entered.
        training: figures of the stage.
        validation: figures of the validation set; their keys begin with ``guard``.
        spent: joules of the epoch, over all parts of the run.
        figure: of its latest part, for the meter and the temperature.
        classes: their names.
    """
    class_e, seconds = progress.memory.class_e, spent.seconds
    confident = confidence(class_e)
    entry = {
        "epoch": len(progress.history) + 1,
        "rung": progress.stages_done,
        **training,
        "guard_acc": validation.accuracy,
        "guard_loss": validation.loss,
        "guard_e": validation.mean_embarrassment,
        "best_acc": progress.best_validation["accuracy"],
        "best_loss": progress.best_validation["loss"],
        "best_e": progress.best_validation["embarrassment"],
        "energy_j": spent.total_j,
        "net_j": spent.net_j,
        "energy_source": spent.source,
        "meter": figure.meter,
        "power_w": spent.total_j / seconds if spent.total_j is not None and seconds > 0 else None,
        "uncertainty_j": spent.uncertainty_j,
        "phases": spent.phases,
        "temp_c": figure.temp_c,
        "time_s": seconds,
        "classes": {
            name: {"E": class_e[i], "C": confident[i], "acc": validation.class_accuracy[i]}
            for i, name in enumerate(classes)
        },
    }
    return dict(finite(entry))


def history_rows(history: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """One flat row per epoch: the published columns, ours, then E_, C_ and acc_ of each class."""
    rows = []
    nominal = 0.0
    for entry in history:
        nominal += entry["nominal_flops_t"]
        row: dict[str, Any] = {key: entry.get(key) for key in (*PUBLISHED, *OURS)}
        row |= {"flops_T": nominal, "executed_flops_T": entry["executed_flops_t"]}
        for name in classes:
            figures = entry["classes"].get(name, {})
            row |= {f"E_{name}": figures.get("E"), f"C_{name}": figures.get("C"), f"acc_{name}": figures.get("acc")}
        rows.append(row)
    return rows


def write_history(path: Path, history: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """``history.csv``; unknown values are empty cells, never zeros."""
    write_table(path, history_rows(history, classes))
