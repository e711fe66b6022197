"""The step size of each plan, where the user gives none.

Chosen on validation images of field shifts (low light, fog, blur with noise; head: label shift and a new class).
"""

from __future__ import annotations

from edge_sel.pack.manifest import split_plan_name
from edge_sel.sel.schedule import sel_learning_rate

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
