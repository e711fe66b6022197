"""What one epoch was like: summed up on the device, looked at once, and its row: the published columns, then ours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_sel.power.figure import EnergyFigure
from edge_sel.reference.policy import Pool
from edge_sel.reference.results import EpochRow
from edge_sel.sel import embarrassment
from edge_sel.sel.embarrassment import confidence
from edge_sel.sel.guilt import nominal_flops
from edge_sel.sel.sundew import nominal_savings_percent


@dataclass(frozen=True)
class EpochResult:
    """One epoch of training, without its energy."""

    stage: int
    phase: str
    train_acc: float
    train_loss: float
    sparsity: float
    visited: int
    """Images that went forward in training."""
    active: int
    """Those of them whose loss counted."""
    nominal_flops: int
    executed_flops: int
    """Of training and of the passes that selected the images; evaluation is not in it."""
    class_embarrassment: tuple[float, ...]
    """NaN for a class that was not visited."""


@dataclass(frozen=True)
class Accuracies:
    """On the test images; per class only the first 100 count, as in the sources."""

    full: float
    first_100: float
    per_class: tuple[float, ...]

    @classmethod
    def of(cls, correct: torch.Tensor, labels: torch.Tensor, classes: int) -> Accuracies:
        """From ``correct`` bool[N] and ``labels`` int64[N] of the test images; looks at the device."""
        right = correct.double()
        members = labels[:, None] == torch.arange(classes, device=labels.device)
        first = (members & (members.cumsum(0) <= 100)).double()
        counts = first.sum(0)
        per_class = (first * right[:, None]).sum(0) / counts
        overall = (first * right[:, None]).sum() / counts.sum()
        return cls(float(right.mean()), float(overall), tuple(per_class.tolist()))


class EpochSums:
    """What an epoch adds up, on the device."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.visited = self.steps = 0
        self.loss, self.correct, self.active, self.sparsity = torch.zeros(4, dtype=torch.float64, device=device)
        self.embarrassment = embarrassment.init_sums(classes, torch, device=device)

    def add(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        losses: torch.Tensor,
        correct: torch.Tensor,
        weights: torch.Tensor | None,
        sparsity: torch.Tensor | None,
    ) -> None:
        """One batch."""
        self.visited += len(labels)
        self.steps += 1
        self.loss += losses.sum()
        self.correct += correct.sum()
        self.active += len(labels) if weights is None else (weights > 0).sum()
        if sparsity is not None:
            self.sparsity += sparsity
        self.embarrassment = embarrassment.add_batch(self.embarrassment, logits, labels)

    def result(self, pool: Pool, parameters: int, executed_flops: int) -> EpochResult:
        """The one look at the device."""
        visited, steps = max(1, self.visited), max(1, self.steps)
        loss, correct, active, sparsity = torch.stack((self.loss, self.correct, self.active, self.sparsity)).tolist()
        share = min(1.0, max(0.0, sparsity / steps))
        return EpochResult(
            stage=pool.stage,
            phase=pool.name,
            train_acc=correct / visited,
            train_loss=loss / visited,
            sparsity=share,
            visited=self.visited,
            active=round(active),
            nominal_flops=nominal_flops(parameters, round(active), share) if pool.counted else 0,
            executed_flops=executed_flops,
            class_embarrassment=tuple(embarrassment.means(self.embarrassment).tolist()),
        )


def make_row(
    rows: Sequence[EpochRow], result: EpochResult, judged: Accuracies, figure: EnergyFigure, classes: Sequence[str]
) -> EpochRow:
    """The row after ``rows``.

    ``flops_T``, ``executed_flops_T`` and ``time_s`` add up over the epochs, as published; joules are those of the
    epoch. Time and joules are of training and of the selection before it, not of the evaluation.
    """
    before = rows[-1] if rows else {"flops_T": 0.0, "executed_flops_T": 0.0, "time_s": 0.0}
    # A class that was not visited keeps its embarrassment; one never visited has none.
    known = [before.get(f"E_{name}") for name in classes]
    fresh = [None if math.isnan(e) else e for e in result.class_embarrassment]
    shame = [old if new is None else new for new, old in zip(fresh, known, strict=True)]
    row: EpochRow = {
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


def summarise_run(rows: Sequence[EpochRow]) -> dict[str, Any]:
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


def total(rows: Sequence[EpochRow], column: str) -> float | None:
    """The sum of a column; None if a value is missing, as half a sum would pass for the whole."""
    values = [row[column] for row in rows]
    return None if any(value is None for value in values) else math.fsum(values)
