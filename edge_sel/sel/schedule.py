"""How large the step is: the published loss-driven rate, and the annealing that every dense baseline gets."""

from __future__ import annotations

import math

from edge_sel.errors import UsageError
from edge_sel.sel._array import Array


def sel_learning_rate(base: float, loss: float | Array) -> float | Array:
    """SEL's learning rate: the larger the loss, the larger the step.

    Formula: ``lr = base (1 + 2 loss)``

    Args:
        base: rate at loss 0, published as 1e-3 for Adam.
        loss: mean loss of the batch in nats; a number or an array. Not bounded: a loss of log 10 already
            means 5.6 times the base rate.

    Returns:
        A float, or an array like ``loss``.

    Example:
        >>> sel_learning_rate(0.001, 1.0)
        0.003
    """
    return base * (1 + 2 * loss)


def annealed(base: float, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Cosine annealing to zero after a linear warm-up.

    Formula: ``base (step + 1) / warmup`` below the warm-up, then ``base (1 + cos(pi p)) / 2`` with
    ``p = (step - warmup) / (total - warmup)``

    Args:
        base: the largest rate.
        step: from 0. Past the end the rate is 0.
        total_steps: steps of the whole run, at least 1.
        warmup_steps: steps that rise to ``base``; the first is already above zero, so no step is wasted.

    Returns:
        The rate of this step, in 0..base.

    Example:
        >>> [round(annealed(1.0, step, 4, 2), 2) for step in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if total_steps < 1 or warmup_steps < 0:
        raise UsageError("annealing needs at least 1 step and no negative warm-up", where=(total_steps, warmup_steps))
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return base * ((step + 1) / warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))
