"""How much is still to be computed, in FLOPs at the gate's own rate: what the governor's forecasts are made of."""

from __future__ import annotations

from collections.abc import Iterable

from edge_sel.edge.progress import Progress
from edge_sel.edge.rungs import Rung
from edge_sel.pack.reader import Pack


def rung_work(pack: Pack, rung: Rung, images: int, rate: float) -> float:
    """A whole rung: the pass that scores every image, then its epochs; a pass over the statistics costs a forward."""
    plan = pack.plan(rung.plan)
    if not plan.trainable:
        return float(images * plan.flops_train)
    return images * (plan.flops_forward + rung.epochs * rate * plan.flops_train)


def rung_work_left(pack: Pack, rung: Rung, progress: Progress, images: int, rate: float, scored: int) -> float:
    """What is left of the rung that ``progress`` stands in; ``scored`` images have had their first look."""
    plan = pack.plan(rung.plan)
    if not plan.trainable:
        seen = progress.tally.candidates if not progress.epoch else images
        return float((images - seen) * plan.flops_train)
    candidates = (rung.epochs - progress.epoch) * images - progress.cursor
    scoring = 0 if len(progress.pool_loss) else images - scored
    return max(candidates, 0) * rate * plan.flops_train + scoring * plan.flops_forward


def work_of(pack: Pack, rungs: Iterable[Rung], images: int, rate: float) -> float:
    """Several whole rungs."""
    return sum(rung_work(pack, rung, images, rate) for rung in rungs)
