"""Choose the guilty output channels, or attention heads, of a budgeted plan by probing the same plan without a budget.

A stage chooses anew at the start of every epoch. A budgeted step sees no gradient of the other channels, so the probe
costs two steps of the whole plan. Measured on CIFAR-10 in low light (``last-c25``, batch 32): a fresh choice holds 89 %
of the gradient norm that the best choice would, one that is 8 steps old 79 to 84 %, one that is an epoch of 31 steps
old 77 %, an older one 73 to 80 %, a random one 68 %. Once an epoch pays; every 8 steps would add a quarter to the
joules for some 4 % of the norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Engine
from edge_sel.pack.manifest import PlanInfo
from edge_sel.pack.reader import Pack
from edge_sel.sel.guilt import guilty_channels, head_guilt, rows_of_heads


class Choice(NamedTuple):
    """What takes part in an epoch, and why.

    Attributes:
        rows: weight → int64 [k], ascending: what a trainer's ``set_channels`` takes.
        guilt: weight → float [O] or [H], the gradient norm of each output channel, or of each attention head.
    """

    rows: Arrays
    guilt: Arrays


def choose_channels(
    engine: Engine,
    pack: Pack,
    plan: PlanInfo,
    probe: PlanInfo,
    weights: Mapping[str, np.ndarray],
    batches: Sequence[Batch],
) -> Choice:
    """For every limited weight the k channels with the largest gradient norm, summed over the probe batches.

    Of attention the heads with the largest norm.

    Args:
        engine: executes the probe.
        pack: holds both plans.
        plan: the budgeted plan, such as ``last-c25``.
        probe: the same plan without its budget, ``last``.
        weights: the current full set of weights.
        batches: what to probe with; nothing is updated.
    """
    trainer = engine.trainer(pack, probe.name, weights)
    totals = {name: np.zeros(len(weights[name])) for name in plan.channels}
    for batch in batches:
        norms = trainer.guilt(batch)
        for name in totals:
            totals[name] += norms[name]
    guilt = {n: head_guilt(total, plan.heads[n]) if n in plan.heads else total for n, total in totals.items()}
    return Choice({name: chosen_rows(plan, name, guilt[name], len(weights[name])) for name in guilt}, guilt)


def chosen_rows(plan: PlanInfo, name: str, guilt: np.ndarray, rows: int) -> np.ndarray:
    """int64 [k]: of the weight's rows those of its guiltiest channels, or heads; ``guilt`` is of these."""
    heads = plan.heads.get(name)
    chosen: np.ndarray = guilty_channels(guilt, plan.channels[name] * (heads or rows) // rows)
    if heads is not None:
        chosen = rows_of_heads(chosen, heads, rows)
    return chosen


def told(plan: PlanInfo, guilt: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What an epoch's record says of the choice: of heads each one's guilt, of channels what share of the norm is held.

    Args:
        plan: the budgeted plan.
        guilt: of a ``Choice``.
        weights: of the model.
    """
    record: dict[str, Any] = {}
    for name, norms in guilt.items():
        heads, rows = plan.heads.get(name), len(weights[name])
        chosen = guilty_channels(norms, plan.channels[name] * (heads or rows) // rows)
        held = float(np.linalg.norm(norms[chosen]) / max(float(np.linalg.norm(norms)), 1e-30))
        record[name] = {"of": len(norms), "chosen": len(chosen), "share_of_norm": held}
        if heads is not None:
            record[name] |= {"heads": [float(norm) for norm in norms], "chosen_heads": chosen.tolist()}
    return record
