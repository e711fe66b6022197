"""One row per epoch: the columns of the published CSV files, then ours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_sel.power.figure import EnergyFigure
from edge_sel.reference.epoch import Accuracies, EpochResult
from edge_sel.reference.results import Row
from edge_sel.sel.embarrassment import confidence
from edge_sel.sel.sundew import nominal_savings_percent


def make_row(
    rows: Sequence[Row], result: EpochResult, judged: Accuracies, figure: EnergyFigure, classes: Sequence[str]
) -> Row:
    """The row after ``rows``.

    ``flops_T``, ``executed_flops_T`` and ``time_s`` add up over the epochs, as published; joules are those of the
    epoch. Time and joules are of training and of the selection before it, not of the evaluation.
    """
    before = rows[-1] if rows else {"flops_T": 0.0, "executed_flops_T": 0.0, "time_s": 0.0}
    # A class that was not visited keeps its embarrassment; one never visited has none.
    known = [before.get(f"E_{name}") for name in classes]
    fresh = [None if math.isnan(e) else e for e in result.class_embarrassment]
    shame = [old if new is None else new for new, old in zip(fresh, known, strict=True)]
    row: Row = {
        "epoch": len(rows) + 1,
        "stage": result.stage,
        "train_acc": result.train_acc,
        "train_loss": result.train_loss,
        "test_full": judged.full,
        "test_100": judged.first_100,
        "flops_T": before["flops_T"] + result.nominal_flops / 1e12,
        "time_s": before["time_s"] + figure.seconds,
        "sparsity": result.sparsity,
    }
    for number, name in enumerate(classes):
        row[f"E_{name}"] = shame[number]
        sure = None if shame[number] is None else float(confidence(np.float64(shame[number])))
        row[f"C_{name}"] = sure
        row[f"acc_{name}"] = judged.per_class[number]
    row |= {
        "phase": result.phase,
        "visited": result.visited,
        "active": result.active,
        "active_rate": result.active / max(1, result.visited),
        "nominal_savings_percent": nominal_savings_percent(result.active, result.visited - result.active),
        "executed_flops_T": before["executed_flops_T"] + result.executed_flops / 1e12,
        "images_per_s": result.visited / figure.seconds if figure.seconds > 0 else None,
        "energy_j": figure.total_j,
        "net_j": figure.net_j,
        "energy_source": figure.source,
        "meter": figure.meter,
        "power_w": figure.mean_power_w,
        "temp_c": figure.temp_c,
        "throttled": "; ".join(figure.throttled),
    }
    # A loss that diverged, or a class without test images: JSON has no NaN, and it is no number either.
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of a whole run, from its rows."""
    last = rows[-1]
    sources = sorted({row["energy_source"] for row in rows})
    classes = [key.removeprefix("acc_") for key in last if key.startswith("acc_")]
    return {
        "epochs": len(rows),
        "test_full": last["test_full"],
        "test_100": last["test_100"],
        "train_acc": last["train_acc"],
        "train_loss": last["train_loss"],
        "nominal_flops_t": last["flops_T"],
        "executed_flops_t": last["executed_flops_T"],
        "time_s": last["time_s"],
        "sparsity": statistics.fmean(row["sparsity"] for row in rows),
        "last_sparsity": last["sparsity"],
        "active_rate": sum(row["active"] for row in rows) / max(1, sum(row["visited"] for row in rows)),
        "nominal_savings_percent": statistics.fmean(row["nominal_savings_percent"] for row in rows),
        "energy_j": total(rows, "energy_j"),
        "net_j": total(rows, "net_j"),
        "energy_source": sources[0] if len(sources) == 1 else "mixed: " + ", ".join(sources),
        "meter": last["meter"],
        "temp_c": max((row["temp_c"] for row in rows if row["temp_c"] is not None), default=None),
        "throttled": sorted({row.get("throttled", "") for row in rows} - {""}),
        "images_per_s": sum(row["visited"] for row in rows) / last["time_s"] if last["time_s"] > 0 else None,
        "per_class": {name: {k: last[f"{k}_{name}"] for k in ("acc", "E", "C")} for name in classes},
    }


def total(rows: Sequence[Row], column: str) -> float | None:
    """The sum of a column; None if a value is missing, as half a sum would pass for the whole."""
    values = [row[column] for row in rows]
    return None if any(value is None for value in values) else math.fsum(values)
