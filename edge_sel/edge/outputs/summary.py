"""``run.json``, the machine-readable result of a session: schema 1, keys are added but never renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.config.settings import Settings
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.open import RunInputs, SplitImages
from edge_sel.edge.progress import Progress, original_weights
from edge_sel.edge.train.auto_schedule import body_of, price_j
from edge_sel.edge.train.schedule import PlannedStage
from edge_sel.edge.train.work import work_of
from edge_sel.files import finite
from edge_sel.pack.reader import Pack
from edge_sel.power.figure import EnergyFigure, RecorderCost
from edge_sel.runs.checkpoint import Identity
from edge_sel.sel.embarrassment import cross_entropy

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


def run_facts(given: RunInputs, split: SplitImages, identity: Identity) -> dict[str, Any]:
    """What a run is told before it begins."""
    pack, images, duplicates = given.pack, given.images, split.duplicates
    signers = {"pack": pack.signers, "expert": None if given.expert is None else given.expert.signers}
    return {
        "pack": str(pack.path),
        "from": None if pack.begun_from is None else str(pack.begun_from),
        "signers": {name: None if found is None else found.to_json() for name, found in signers.items()},
        "engine": given.engine.name,
        "plan": given.settings.plan,
        "classes": images.classes,
        "skipped_images": [{"path": skipped.path, "reason": skipped.reason} for skipped in images.skipped],
        "settings": given.resolved.to_json(),
        "identity": identity,
        "run": None if given.out is None else str(given.out),
        "source": given.source,
        "images": {"train": len(split.training), "validation": len(split.validation), "test": len(given.test or ())},
        "duplicates": {
            "left_out": [images.ids[row] for row in duplicates.left_out],
            "contradictory": [images.ids[row] for row in duplicates.contradictory],
        },
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
    on = "test" if "test" in before else "validation"
    after = after or {}

    def accuracy(figures: Mapping[str, Any], key: str) -> float | None:
        return float(figures[key]["accuracy"]) if key in figures else None

    return {
        "before": accuracy(before, on),
        "after": accuracy(after, on),
        "validation_before": accuracy(before, "validation"),
        "validation_after": accuracy(after, "validation"),
        "on": on,
        "pack": accuracy(before.get("pack", {}), on),
    }


def _energy_block(progress: Progress, figure: EnergyFigure, cost: RecorderCost) -> dict[str, Any]:
    return {
        **progress.run_spent.to_json(),
        "meter": figure.meter,
        "idle_w": figure.idle_w,
        "why": figure.why,
        "recorder": cost.to_json(),
    }


# --- Beyond the figures


HARDEST = 24
"""Images that are named."""
SPARED = ("train", "backbone", "fit", "score")
"""Phases that dense training would take the place of."""


def insight_block(progress: Progress, pack: Pack, training: ImageSet, validation: ImageSet) -> dict[str, Any]:
    """``confusion``, ``hardest``, ``changed`` and ``dense`` of ``run.json``; docs/reference/files.md says more.

    Args:
        progress: as the run ended, with the weights to keep.
        pack: whose weights they began as.
        training: images that were trained on.
        validation: images that were held back.
    """
    return {
        "confusion": _confusion(progress, validation),
        "hardest": {"training": _hardest_trained(progress, training), "validation": _hardest(progress, validation)},
        "changed": changed_weights(original_weights(pack, len(training.classes)), progress.weights),
        "dense": dense_forecast(progress, pack, len(training)),
    }


def _confusion(progress: Progress, validation: ImageSet) -> dict[str, Any]:
    """Cells [label, prediction, images] of the validation set that are not empty; classes by their number."""
    found = {}
    for name, logits in (("before", progress.predictions.before), ("after", progress.predictions.best)):
        known = len(logits) == len(validation.labels)
        pairs = np.stack([validation.labels, logits.argmax(1)], 1) if known else np.zeros((0, 2), np.int64)
        cells, counts = np.unique(pairs, axis=0, return_counts=True)
        found[name] = [[*map(int, cell), int(count)] for cell, count in zip(cells, counts, strict=True)]
    return found


def _hardest_trained(progress: Progress, training: ImageSet) -> list[dict[str, Any]]:
    """The training images with the largest loss at their last visit."""
    memory = progress.memory.hardness
    seen = np.flatnonzero(memory.seen > 0)
    rows = seen[np.argsort(-memory.last_loss[seen], kind="stable")][:HARDEST]
    return [
        {
            "path": training.ids[row],
            "label": training.classes[training.labels[row]],
            "loss": float(memory.last_loss[row]),
            "right": bool(memory.last_correct[row]),
            "visits": int(memory.seen[row]),
        }
        for row in rows
    ]


def _hardest(progress: Progress, validation: ImageSet) -> list[dict[str, Any]]:
    """The validation images with the largest loss under the weights to keep."""
    before, best = progress.predictions.before, progress.predictions.best
    if not len(before) == len(best) == len(validation.labels):
        return []
    losses = [cross_entropy(logits, validation.labels) for logits in (before, best)]
    return [
        {
            "path": validation.ids[row],
            "label": validation.classes[validation.labels[row]],
            "predicted": validation.classes[best[row].argmax()],
            "loss_before": float(losses[0][row]),
            "loss": float(losses[1][row]),
        }
        for row in np.argsort(-losses[1], kind="stable")[:HARDEST]
    ]


def changed_weights(before: Arrays, after: Arrays) -> list[dict[str, Any]]:
    """The tensors that differ, in the order of the model.

    Returns:
        Of each the ``weight``'s name; ``relative``, the Frobenius norm of the difference over that of the original,
        null where that is 0; and of its rows (output channels) how many ``channels`` there are, how many ``updated``.
    """
    found = []
    for name, old in before.items():
        difference = np.asarray(after[name], np.float64) - old
        if not difference.any():
            continue
        norm = float(np.linalg.norm(np.asarray(old, np.float64)))
        rows = difference.reshape(len(difference), -1) if difference.ndim else difference.reshape(1, 1)
        found.append(
            {
                "weight": name,
                "relative": float(np.linalg.norm(difference)) / norm if norm else None,
                "channels": len(rows),
                "updated": int(rows.any(1).sum()),
            }
        )
    return found


def dense_forecast(progress: Progress, pack: Pack, images: int) -> dict[str, Any] | None:
    """What as many passes over every training image would take, all weights being trained; None without a body.

    A forecast: the FLOPs of the pack's graphs at the joules per FLOP of this run's own training steps, everything
    else as it was. ``energy_j`` is None where this run has no such steps, or no joules.
    """
    plan, passes = body_of(pack.plan_names), len(progress.history)
    if plan is None or not passes:
        return None
    work = work_of(pack, [PlannedStage(plan, passes)], images, 1.0, scores=False)
    trained_j, total_j = price_j(progress.history, work, 0), progress.run_spent.total_j
    spared = _joules(progress, SPARED)
    energy_j = None
    if trained_j is not None and total_j is not None and spared is not None:
        energy_j = total_j - spared + trained_j
    return {"plan": plan, "epochs": passes, "flops_t": work / 1e12, "energy_j": energy_j}


def _joules(progress: Progress, phases: Sequence[str]) -> float | None:
    spent = progress.run_spent.phases
    parts = [spent[name]["total_j"] for name in phases if name in spent]
    return None if None in parts else float(sum(part for part in parts if part is not None))
