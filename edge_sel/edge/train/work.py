"""What was computed and what is still to be, in FLOPs; the governor's forecasts are made of the latter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from edge_sel.edge.features.cache import copies
from edge_sel.edge.progress import Progress
from edge_sel.edge.train.rungs import Rung
from edge_sel.pack.manifest import PlanInfo
from edge_sel.pack.reader import Pack
from edge_sel.sel.nominal_flops import nominal_flops

STATISTICS_IMAGES = 512
"""Enough for batch normalisation's statistics: with 1 700 the accuracy was the same within 0.15 points."""


def rung_work(pack: Pack, rung: Rung, images: int, rate: float, *, scores: bool) -> float:
    """A whole rung: the pass that scores every image, if there is one, its epochs, and its frozen prefix.

    Re-estimating statistics costs a forward pass of some images. That features are kept is taken for granted here.
    """
    plan, prefix = pack.plan(rung.plan), pack.prefix(rung.plan)
    if not plan.trainable:
        return float(min(images, STATISTICS_IMAGES) * plan.flops_train)
    work = images * (scores * plan.flops_forward + rung.epochs * rate * plan.flops_train)
    return work + (features_asked(pack, rung, images, rate, scores=scores) * prefix.flops if prefix else 0)


def features_asked(pack: Pack, rung: Rung, images: int, rate: float, *, scores: bool) -> float:
    """How many features of images and mirror images a whole rung needs, each counted once."""
    return images * (scores + (copies(pack) - scores) * _share_asked(pack, rate, rung.epochs))


def rung_work_left(
    pack: Pack, rung: Rung, progress: Progress, images: int, rate: float, to_score: int, kept: np.ndarray
) -> float:
    """What is left of the rung that ``progress`` stands in.

    ``to_score`` images still get their first look; ``kept`` says which features need not be computed any more, and
    is empty where they are not kept.
    """
    plan, prefix = pack.plan(rung.plan), pack.prefix(rung.plan)
    if not plan.trainable:
        pictures = min(images, STATISTICS_IMAGES)
        seen = progress.tally.candidates if not progress.epoch else pictures
        return float(max(pictures - seen, 0) * plan.flops_train)
    candidates = max((rung.epochs - progress.epoch) * images - progress.cursor, 0)
    work = candidates * rate * plan.flops_train + to_score * plan.flops_forward
    if prefix:
        work += _features_left(pack, ~kept, images, rate, candidates, to_score) * prefix.flops
    return work


def _features_left(
    pack: Pack, missing: np.ndarray, images: int, rate: float, candidates: float, to_score: int
) -> float:
    """How many features are still to be computed in this rung; every time anew where they are not kept."""
    if not len(missing):
        return candidates * rate + to_score
    certain = int(missing[:: copies(pack)].sum()) if to_score else 0
    return certain + (int(missing.sum()) - certain) * _share_asked(pack, rate, candidates / images)


def _share_asked(pack: Pack, rate: float, epochs: float) -> float:
    """Of the images and their mirror images, those that will be trained on at least once in so many epochs."""
    return float(1 - (1 - rate / copies(pack)) ** epochs)


def work_of(pack: Pack, rungs: Iterable[Rung], images: int, rate: float, *, scores: bool) -> float:
    """Several whole rungs."""
    return sum(rung_work(pack, rung, images, rate, scores=scores) for rung in rungs)


def work_done(pack: Pack, plan: PlanInfo, progress: Progress) -> dict[str, Any]:
    """What the epoch did: rates, nominal FLOPs by the papers' formula, executed FLOPs from the graphs."""
    tally = progress.tally
    parameters = _parameters(pack, progress)
    updated = tally.kept / (parameters * tally.steps) if tally.steps else 0.0
    prefix = pack.prefix(plan.name)
    executed = tally.trained * plan.flops_train + tally.forwards * plan.flops_forward + tally.probe_flops
    executed += tally.prefixed * prefix.flops if prefix else 0
    return {
        "candidates": tally.candidates,
        "trained": tally.trained,
        "active_rate": tally.passed / tally.candidates if tally.candidates else 0.0,
        "sparsity": 1.0 - updated,
        "gradient_kept": tally.kept / tally.computed if tally.computed else 0.0,
        "nominal_flops_t": nominal_flops(parameters, tally.trained, 1.0 - updated) / 1e12,
        "executed_flops_t": executed / 1e12,
    }


def _parameters(pack: Pack, progress: Progress) -> int:
    """How many the model has, counting the head's rows for the device's own classes."""
    model, weights = pack.manifest.model, progress.weights
    added = len(weights[model.head[0]]) - len(model.classes)
    return model.parameters + added * sum(int(weights[name][0].size) for name in model.head)
