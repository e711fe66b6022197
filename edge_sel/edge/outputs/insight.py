"""What a report shows beyond the figures: confusions, hardest images, what changed, and the price of dense training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.head import original_weights
from edge_sel.edge.progress import Progress
from edge_sel.edge.train.auto_ladder import body_of, price_j
from edge_sel.edge.train.ladder import PlannedStage
from edge_sel.edge.train.work import work_of
from edge_sel.pack.reader import Pack
from edge_sel.sel.embarrassment import cross_entropy

HARDEST = 24
"""Images that are named."""
SPARED = ("train", "prefix", "fit", "score")
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
