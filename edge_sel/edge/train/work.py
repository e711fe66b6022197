"""What was computed and what is still to be, in FLOPs; the governor's forecasts are made of the latter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edge_sel.edge.features.cache import copies
from edge_sel.edge.progress import EpochTotals, StageState
from edge_sel.edge.train.schedule import PlannedStage
from edge_sel.pack.manifest import PlanInfo
from edge_sel.pack.plan_kinds import BN, CLOSED, CLOSED_FORM, STATISTICS
from edge_sel.pack.reader import Pack
from edge_sel.sel.guilt import nominal_flops

STATISTICS_IMAGES = 256
"""Enough for batch normalisation's statistics: with 512 or 1 700 the accuracy was the same within 0.15 points."""

TRIED_IMAGES, TRIED_SHARE = 32, 8
"""New statistics are tried on so many images, or on an eighth of them."""


def stage_work(pack: Pack, planned: PlannedStage, images: int, rate: float, *, scores: bool) -> float:
    """A whole stage: the pass that scores every image, if there is one, its epochs, and its frozen backbone.

    Re-estimating statistics costs a forward pass of some images. That features are kept is taken for granted here.
    """
    plan, backbone = pack.plan(planned.plan), pack.backbone(planned.plan)
    if plan.kind.trained_by == STATISTICS:
        return float(min(images, STATISTICS_IMAGES) * plan.flops_train)
    if not plan.kind.stepped:  # a head in closed form: every image once, whatever the gate and the curriculum
        rate, scores = 1.0, False
    work = images * (scores * plan.flops_forward + planned.epochs * rate * plan.flops_train)
    if plan.kind.statistics:
        work += _trial_work(pack, images)
    return work + (features_asked(pack, planned, images, rate, scores=scores) * backbone.flops if backbone else 0)


def probed_images(images: int) -> int:
    """Of so many, those by which new statistics are tried."""
    return min(images, max(TRIED_IMAGES, images // TRIED_SHARE), STATISTICS_IMAGES)


def _trial_work(pack: Pack, images: int) -> float:
    """New statistics of some images, and their features by these."""
    backbone = pack.backbone(CLOSED)
    return probed_images(images) * float(pack.plan(BN).flops_train + (backbone.flops if backbone else 0))


def features_asked(pack: Pack, planned: PlannedStage, images: int, rate: float, *, scores: bool) -> float:
    """How many features of images and mirror images a whole stage needs, each counted once."""
    return images * (scores + (copies(pack.manifest.model.flip) - scores) * _share_asked(pack, rate, planned.epochs))


def stage_work_left(pack: Pack, state: StageState, images: int, rate: float, to_score: int, kept: np.ndarray) -> float:
    """What is left of the stage that stands at ``state``.

    ``to_score`` images still get their first look; ``kept`` says which features need not be computed any more, and
    is empty where they are not kept.
    """
    plan, backbone = pack.plan(state.plan), pack.backbone(state.plan)
    if plan.kind.trained_by == STATISTICS:
        pictures = min(images, STATISTICS_IMAGES)
        seen = state.totals.candidates if not state.epoch else pictures
        return float(max(pictures - seen, 0) * plan.flops_train)
    candidates = max((state.epochs - state.epoch) * images - state.cursor, 0)
    work = candidates * rate * plan.flops_train + to_score * plan.flops_forward
    if plan.kind.statistics and not state.epoch and not state.statistics:
        work += max(_trial_work(pack, images) - state.totals.probe_flops, 0.0)
    if backbone:
        work += _features_left(pack, ~kept, images, rate, candidates, to_score) * backbone.flops
    return work


def _features_left(
    pack: Pack, missing: np.ndarray, images: int, rate: float, candidates: float, to_score: int
) -> float:
    """How many features are still to be computed in this stage; every time anew where they are not kept."""
    if not len(missing):
        return candidates * rate + to_score
    certain = int(missing[:: copies(pack.manifest.model.flip)].sum()) if to_score else 0
    return certain + (int(missing.sum()) - certain) * _share_asked(pack, rate, candidates / images)


def _share_asked(pack: Pack, rate: float, epochs: float) -> float:
    """Of the images and their mirror images, those that will be trained on at least once in so many epochs."""
    return float(1 - (1 - rate / copies(pack.manifest.model.flip)) ** epochs)


def work_of(pack: Pack, stages: Iterable[PlannedStage], images: int, rate: float, *, scores: bool) -> float:
    """Several whole stages."""
    return sum(stage_work(pack, planned, images, rate, scores=scores) for planned in stages)


def work_done(
    pack: Pack, plan: PlanInfo, totals: EpochTotals, weights: Mapping[str, np.ndarray], *, whole: bool
) -> dict[str, Any]:
    """What an epoch did: rates, nominal FLOPs by the papers' formula, executed FLOPs from the graphs.

    ``train_flops_t`` are those of the phase ``train``. ``whole``: there the engine computes the frozen backbone too.
    """
    parameters = _parameters(pack, weights)
    updated = totals.kept / (parameters * totals.steps) if totals.steps else 0.0
    backbone = pack.backbone(plan.name)
    in_backbone = totals.backbone_images * backbone.flops if backbone else 0
    computed = totals.trained * plan.flops_train
    executed = computed + totals.probe_flops + totals.scored * plan.flops_forward + in_backbone
    trained = totals.probe_flops + (computed if plan.kind.trained_by != CLOSED_FORM else 0)
    if whole and backbone:
        trained += (totals.backbone_images - totals.scored) * backbone.flops
    return {
        "candidates": totals.candidates,
        "trained": totals.trained,
        "active_rate": totals.passed / totals.candidates if totals.candidates else 0.0,
        "sparsity": 1.0 - updated,
        "gradient_kept": totals.kept / totals.computed if totals.computed else 0.0,
        "nominal_flops_t": nominal_flops(parameters, totals.trained, 1.0 - updated) / 1e12,
        "executed_flops_t": executed / 1e12,
        "train_flops_t": trained / 1e12,
    }


def _parameters(pack: Pack, weights: Mapping[str, np.ndarray]) -> int:
    """How many the model has, counting the head's rows for the device's own classes."""
    model = pack.manifest.model
    added = len(weights[model.head[0]]) - len(model.classes)
    return model.parameters + added * sum(int(weights[name][0].size) for name in model.head)
