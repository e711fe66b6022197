"""Which kind of training stage a plan needs."""

from __future__ import annotations

from edge_sel.edge.train.closed_form_stage import ClosedFormStage
from edge_sel.edge.train.sel_stage import SelStage
from edge_sel.edge.train.stage import StatisticsStage, TrainingStage
from edge_sel.pack.manifest import CLOSED, RIDGE, PlanInfo


def stage_kind(plan: PlanInfo) -> type[TrainingStage]:
    """Statistics, a head in closed form, or SEL epochs of steps."""
    if plan.name in (CLOSED, RIDGE):
        return ClosedFormStage
    return SelStage if plan.trainable else StatisticsStage
