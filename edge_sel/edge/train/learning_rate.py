"""The step size of each plan, where the user gives none.

Chosen on validation images of field shifts (low light, fog, blur with noise; head: label shift and a new class).
"""

from __future__ import annotations

import math

from edge_sel.config.settings import Settings
from edge_sel.engines.base import Hyper
from edge_sel.pack.manifest import PlanInfo, split_plan_name
from edge_sel.pack.reader import Pack
from edge_sel.sel.curriculum import annealed, sel_learning_rate
from edge_sel.sel.guilt import decayed_gamma

BASE_RATES = {
    "adam": {"full": 1e-4, "last": 1.5e-4, "last2": 1.5e-4, "first": 4e-4, "affine": 8e-4, "head": 4e-4},
    "sgd": {"full": 2.4e-3, "last": 2.4e-3, "last2": 2.4e-3, "first": 6e-4, "affine": 1.2e-2, "head": 4e-2},
}
MAX_SEL_LOSS = 1.0
"""Losses above this no longer raise the learning rate: SEL's factor is unbounded, a fine-tune is not robust to it."""


def learning_rate(optimizer: str, plan: str, given: float | None, loss: float) -> float:
    """SEL's rate for a plan (``last-c25`` as ``last``) at this mean loss in nats; ``given`` overrules the table."""
    base = BASE_RATES[optimizer][split_plan_name(plan)[0]] if given is None else given
    return float(sel_learning_rate(base, min(loss, MAX_SEL_LOSS)))


def step_hyper(
    pack: Pack,
    plan: PlanInfo,
    settings: Settings,
    *,
    loss: float,
    share: float,
    thousandth: int,
    curriculum_stage: int,
    curriculum_stages: int,
) -> Hyper:
    """SEL's loss-driven rate, annealed over the training stage; γ decays with the stage of the curriculum.

    Args:
        pack: says the optimizer and the calibrated γ.
        plan: that is trained.
        settings: may overrule both rate and γ; γ = 0 updates every weight.
        loss: of the latest batch, nats; NaN before the first.
        share: of the batch size of the settings that fits into memory. The rate is proportional to it (Goyal et al.,
            2017): as many images then move the weights as far.
        thousandth: of the training stage, 0 to 1000.
        curriculum_stage: from 0.
        curriculum_stages: how many there are.
    """
    loss = loss if math.isfinite(loss) else 1.0
    rate = learning_rate(pack.manifest.optimizer, plan.name, settings.learning_rate, loss)
    gamma = pack.manifest.calibration.gamma if settings.gamma is None else settings.gamma
    return Hyper(
        learning_rate=annealed(share * rate, min(thousandth, 999), 1000, warmup_steps=50),
        gamma=float(decayed_gamma(gamma, curriculum_stage, curriculum_stages)) if gamma > 0 else -1.0,
        momentum=0.9,
    )
