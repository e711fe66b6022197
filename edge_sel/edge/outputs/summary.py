"""The machine-readable result of a session: schema 1, keys are added but never renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_sel.edge.evaluate import Evaluation
from edge_sel.edge.progress import Progress, Spent
from edge_sel.power.figure import EnergyFigure
from edge_sel.sel.embarrassment import confidence

SCHEMA = 1


def epoch_entry(
    progress: Progress,
    figures: Mapping[str, Any],
    guard: Evaluation,
    spent: Spent,
    figure: EnergyFigure,
    classes: Sequence[str],
) -> dict[str, Any]:
    """One epoch of ``history``: what was done, what it cost, where the guard set stands, per-class E, C, accuracy."""
    confident = confidence(progress.class_e)
    return {
        "epoch": len(progress.history) + 1,
        "rung": progress.rung,
        **figures,
        "guard_acc": guard.accuracy,
        "guard_loss": guard.loss,
        "guard_e": guard.mean_embarrassment,
        "best_loss": progress.best_guard["loss"],
        "best_e": progress.best_guard["embarrassment"],
        **_energy(spent, figure),
        "classes": {
            name: {"E": progress.class_e[i], "C": confident[i], "acc": guard.class_accuracy[i]}
            for i, name in enumerate(classes)
        },
    }


def _energy(spent: Spent, figure: EnergyFigure) -> dict[str, Any]:
    seconds = spent.seconds
    return {
        "energy_j": spent.total_j,
        "net_j": spent.net_j,
        "energy_source": spent.source,
        "meter": figure.meter,
        "power_w": spent.total_j / seconds if spent.total_j is not None and seconds > 0 else None,
        "uncertainty_j": spent.uncertainty_j,
        "phases": spent.phases,
        "temp_c": figure.temp_c,
        "time_s": seconds,
    }


def accuracy_block(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> dict[str, Any]:
    """Before and after, on the test images where there are some, else on the guard set; ``on`` says which."""
    on = "test" if "test" in before else "guard"
    after = after or {}

    def accuracy(figures: Mapping[str, Any], key: str) -> float | None:
        return float(figures[key]["accuracy"]) if key in figures else None

    return {
        "before": accuracy(before, on),
        "after": accuracy(after, on),
        "guard_before": accuracy(before, "guard"),
        "guard_after": accuracy(after, "guard"),
        "on": on,
    }


def energy_block(progress: Progress, figure: EnergyFigure, recorder_cost: Mapping[str, Any]) -> dict[str, Any]:
    """Joules of the whole run with their source."""
    spent = progress.run_spent
    return {
        "total_j": spent.total_j,
        "net_j": spent.net_j,
        "source": spent.source,
        "meter": figure.meter,
        "uncertainty_j": spent.uncertainty_j,
        "phases": spent.phases,
        "idle_w": figure.idle_w,
        "why": figure.why,
        "recorder": dict(recorder_cost),
    }
