"""The curriculum: five overlapping windows over each class, from its easy samples to its hard ones; and its steps.

The rate of a step is SEL's loss-driven one, or the annealed one that every dense baseline gets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edge_sel.errors import UsageError
from edge_sel.sel._array import Array, array_namespace, device, stable_order

SAMPLES_PER_CLASS = 2000
"""The published cap per class and stage."""


class Stage(NamedTuple):
    """One stage: the window ``start..end`` (fractions of each class, sorted by loss), and when it is over."""

    name: str
    start: float
    end: float
    threshold: float
    """Accuracy, 0..1, that must be reached before the next stage begins."""
    epochs: int


STAGES = (
    Stage("easy", 0.00, 0.25, 0.30, 10),
    Stage("medium", 0.20, 0.50, 0.45, 10),
    Stage("hard", 0.40, 0.65, 0.58, 10),
    Stage("harder", 0.60, 0.82, 0.68, 10),
    Stage("hardest", 0.78, 1.00, 0.76, 10),
)
"""The published windows (SEL README v3, ``STAGE_CONFIG``)."""

# 0.58 * 100 is 57.999999999999993 in binary: without a tolerance the window would begin one sample early.
_ROUNDING = 1e-9


def stage_pool(losses: Array, labels: Array, stage: Stage, *, per_class_cap: int = SAMPLES_PER_CLASS) -> Array:
    """The samples a stage may train on.

    Formula: per class of n samples, sorted by loss ascending, the positions ``floor(start n) .. ceil(end n)
        - 1``

    Every class that has samples contributes at least one. A window of w > cap samples is thinned evenly
    (positions ``floor(j w / cap)``), so a capped stage still spans its whole range of difficulty. Equal
    losses keep the order of the data set; NaN counts as hardest.

    Args:
        losses: float[N], from a cold or a warmup model.
        labels: int[N].
        stage: the window.
        per_class_cap: most samples per class.

    Returns:
        int64[M], indices into ``losses``, ordered by class and then from easy to hard. M depends on the
        data, so this waits for the device: call it once per stage, not per step.

    Example:
        >>> import numpy as np
        >>> losses = np.array([0.9, 0.1, 0.5, 0.2, 0.7, 0.3])
        >>> stage_pool(losses, np.array([0, 0, 0, 0, 1, 1]), STAGES[0]).tolist()
        [1, 5]

    Source: SEL README v3, "Curriculum Staging".
    """
    if per_class_cap < 1:
        raise UsageError("the cap on samples per class must be at least 1", where=per_class_cap)
    xp = array_namespace(losses, labels)
    if losses.shape[0] == 0:
        return xp.zeros(0, dtype=xp.int64, device=device(losses))
    # Two stable sorts: first by loss, then by class, leave every class a contiguous run from easy to hard.
    order = stable_order(losses)
    order = xp.take(order, stable_order(xp.take(labels, order)))
    classes = xp.take(labels, order)
    run = xp.concat([xp.zeros_like(classes[:1]) != 0, classes[1:] != classes[:-1]])
    run = xp.cumulative_sum(xp.astype(run, xp.int64))
    counts = xp.astype(xp.unique_counts(classes).counts, xp.int64)
    n = xp.take(counts, run)
    position = xp.arange(order.shape[0], dtype=xp.int64, device=device(losses))
    position = position - xp.take(xp.cumulative_sum(counts) - counts, run)

    size = xp.astype(n, xp.float64)
    begin = xp.astype(xp.floor(stage.start * size + _ROUNDING), xp.int64)
    begin = xp.minimum(begin, n - 1)
    end = xp.astype(xp.ceil(stage.end * size - _ROUNDING), xp.int64)
    width = xp.maximum(end - begin, xp.ones_like(n))
    cap = xp.minimum(width, xp.full_like(width, per_class_cap))
    offset = position - begin
    # Position q is one of floor(j * width / cap), j = 0..cap-1, exactly if this many j fall on it (0 or 1).
    chosen = _ceil_div((offset + 1) * cap, width) - _ceil_div(offset * cap, width)
    return xp.astype(order[(offset >= 0) & (offset < width) & (chosen > 0)], xp.int64)


def _ceil_div(a: Array, b: Array) -> Array:
    return -(-a // b)


def stage_passed(accuracy: float, stage: Stage) -> bool:
    """Whether ``accuracy`` (0..1) reaches the stage's threshold, so that the next may begin."""
    return accuracy >= stage.threshold


def scale_epochs(stages: Sequence[Stage], total_epochs: int) -> tuple[Stage, ...]:
    """The same curriculum in another number of epochs.

    Every stage gets one epoch; the others are shared out in proportion to the published epochs, by largest
    remainder (ties go to the earlier stage). With fewer epochs than stages the *last* stages merge into one
    whose window runs from the first of them to the end, with the highest of their thresholds: the start
    stays gentle, and the windows still cover the classes without a gap.

    Args:
        stages: in order.
        total_epochs: at least 1.

    Returns:
        min(len(stages), total_epochs) stages whose epochs sum to ``total_epochs``.

    Example:
        >>> [(s.name, s.start, s.end, s.epochs) for s in scale_epochs(STAGES, 2)]
        [('easy', 0.0, 0.25, 1), ('medium-hardest', 0.2, 1.0, 1)]
    """
    if total_epochs < 1:
        raise UsageError("a curriculum needs at least 1 epoch", where=total_epochs)
    if not stages:
        raise ValueError("scale_epochs needs at least one stage")
    merged = _merge_last(tuple(stages), total_epochs)
    spare = total_epochs - len(merged)
    weight = sum(stage.epochs for stage in merged)
    quotas = [spare * stage.epochs / weight if weight else spare / len(merged) for stage in merged]
    epochs = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(merged)), key=lambda i: (epochs[i] - quotas[i], i))
    for i in by_remainder[: spare - sum(epochs)]:
        epochs[i] += 1
    return tuple(stage._replace(epochs=1 + extra) for stage, extra in zip(merged, epochs, strict=True))


def _merge_last(stages: tuple[Stage, ...], at_most: int) -> tuple[Stage, ...]:
    if len(stages) <= at_most:
        return stages
    kept, last = stages[: at_most - 1], stages[at_most - 1 :]
    return (
        *kept,
        Stage(
            name=f"{last[0].name}-{last[-1].name}",
            start=min(stage.start for stage in last),
            end=max(stage.end for stage in last),
            threshold=max(stage.threshold for stage in last),
            epochs=sum(stage.epochs for stage in last),
        ),
    )


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
