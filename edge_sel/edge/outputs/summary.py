"""The machine-readable result of a session: schema 1, keys are added but never renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_sel.config.settings import Resolved, Settings
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.energy import LOST, Spent
from edge_sel.edge.progress import Progress
from edge_sel.files import finite
from edge_sel.pack.reader import Pack
from edge_sel.pack.weights import Expert
from edge_sel.power.figure import EnergyFigure, RecorderCost
from edge_sel.runs.checkpoint import Identity

SCHEMA = 1


def run_summary(
    progress: Progress,
    after: Mapping[str, Any] | None,
    figure: EnergyFigure,
    cost: RecorderCost,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``--json`` prints and ``run.json`` holds.

    Args:
        progress: as the run ended.
        after: figures of the model that it ends with; None if there was no time to look at it.
        figure: joules of the latest part of the run.
        cost: what recording them took.
        facts: where it ran, with what, and how it ended.
    """
    content = {
        "schema": SCHEMA,
        **facts,
        "accuracy": accuracy_block(progress.before, after),
        "energy": _energy_block(progress, figure, cost),
        "time_s": progress.run_spent.seconds,
        "epochs": progress.history,
        "decisions": progress.decisions,
        "before": progress.before,
        "after": after,
    }
    return dict(finite(content))


def run_facts(
    pack: Pack, images: ImageSet, engine: str, resolved: Resolved, identity: Identity, expert: Expert | None
) -> dict[str, Any]:
    """What a run is told before it begins."""
    signers = {"pack": pack.signers, "expert": None if expert is None else expert.signers}
    return {
        "pack": str(pack.path),
        "from": None if pack.begun_from is None else str(pack.begun_from),
        "signers": {name: None if found is None else found.to_json() for name, found in signers.items()},
        "engine": engine,
        "plan": resolved.settings.plan,
        "classes": images.classes,
        "skipped_images": [{"path": skipped.path, "reason": skipped.reason} for skipped in images.skipped],
        "settings": resolved.to_json(),
        "identity": identity,
    }


def trouble_block(
    progress: Progress, training: ImageSet, figure: EnergyFigure, throttled: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """What slowed the run down, made its batches smaller, or looks wrong with its images."""
    return {
        "throttled": [*throttled, *(f"{figure.meter}: {reason}" for reason in figure.throttled)],
        "batch_limit": progress.batch_limit.images or None,
        "suspicious": suspicious_block(progress, training, dropped=settings.drop_suspicious),
    }


def suspicious_block(progress: Progress, training: ImageSet, *, dropped: bool) -> dict[str, Any]:
    """The images whose labels look wrong, and what each looks like; ``share`` is None where nobody has looked."""
    looked, other = any("doubted" in entry for entry in progress.history), progress.memory.looks_like
    rows = np.flatnonzero(other >= 0)
    return {
        "share": len(rows) / len(other) if looked else None,
        "dropped": dropped,
        "files": [
            {
                "path": training.ids[row],
                "label": training.classes[training.labels[row]],
                "looks_like": training.classes[other[row]],
            }
            for row in rows
        ],
    }


def accuracy_block(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> dict[str, Any]:
    """Before and after, on the test images if there are some, else on the validation set; ``on`` says which.

    ``pack`` is that of the pack's own model, where the run began with another.
    """
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
        "pack": accuracy(before.get("pack", {}), on),
    }


def spent_block(spent: Spent) -> dict[str, Any]:
    """Joules of the whole run with their source; ``lost_j`` of them, in ``lost_s``, went into work that was cut off."""
    lost = spent.phases.get(LOST, {"total_j": 0.0, "seconds": 0.0})
    return {
        "total_j": spent.total_j,
        "net_j": spent.net_j,
        "lost_j": lost["total_j"],
        "lost_s": lost["seconds"],
        "source": spent.source,
        "uncertainty_j": spent.uncertainty_j,
        "phases": spent.phases,
    }


def _energy_block(progress: Progress, figure: EnergyFigure, cost: RecorderCost) -> dict[str, Any]:
    return {
        **spent_block(progress.run_spent),
        "meter": figure.meter,
        "idle_w": figure.idle_w,
        "why": figure.why,
        "recorder": cost.to_json(),
    }
