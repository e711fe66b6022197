"""Which kind of training stage a plan needs."""

from __future__ import annotations

from edge_sel.edge.train.closed_stage import ClosedStage
from edge_sel.edge.train.ridge_stage import RidgeStage
from edge_sel.edge.train.sel_stage import SelStage
from edge_sel.edge.train.stage import TrainingStage
from edge_sel.edge.train.statistics_stage import StatisticsStage
from edge_sel.pack.manifest import CLOSED, RIDGE, PlanInfo


def stage_kind(plan: PlanInfo) -> type[TrainingStage]:
    """Statistics, a head in closed form, or SEL epochs of steps."""
    if plan.name == CLOSED:
        return ClosedStage
    if plan.name == RIDGE:
        return RidgeStage
    return SelStage if plan.trainable else StatisticsStage
