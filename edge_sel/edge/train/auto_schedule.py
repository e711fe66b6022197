"""``--plan auto``: which stage pays next. It knows what each is expected to give, and what it will cost here.

What needs no gradient comes first: batch normalisation's statistics from the device's own images and a head in closed
form cost little, and what the validation set says afterwards tells what is left to learn. Where the pack or the engine
has no closed form it is statistics, then the head. Then comes the body, as long as the gain that the pack's table
promises is worth the joules that the stage will take at this run's own joules per FLOP. A stage that gave less than
promised lowers every later promise.

Each decision is a pure function of the history, so that a resumed run decides as the uninterrupted one did.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edge_sel.config.settings import Settings
from edge_sel.edge.train.schedule import (
    History,
    NextStage,
    Outcome,
    PlannedStage,
    loss_in,
    outcome_of,
    stages_of,
    was_kept,
)
from edge_sel.edge.train.work import stage_work
from edge_sel.pack.manifest import Calibration, GainRow
from edge_sel.pack.plan_kinds import BN, CLOSED, HEAD, RIDGE, plan_kind
from edge_sel.pack.reader import Pack

# --- Gains: the pack's table has a row for every stage that the server rehearsed (``api/rehearsal.py``). A device reads
# it at its own place: how much higher its validation loss is than the server's was on clean images, and how many images
# it visits.


LOSS_WIDTH = 0.2
"""Nats apart at which a row counts 0.6 of one at the very place."""
VISITS_WIDTH = 1.5
"""The same for the number of visits, in doublings."""

DOUBT = 0.01
"""Accuracy by which a validation set may mislead; promises and results are compared on top of it."""

GENERIC = (
    GainRow("head", 1500, 0.0, 0.0),
    GainRow("head", 1500, 0.3, 0.005),
    GainRow("head", 1500, 1.0, 0.015),
    GainRow("body", 750, 0.0, 0.0),
    GainRow("body", 750, 0.3, 0.01),
    GainRow("body", 750, 1.0, 0.05),
    GainRow("body", 2250, 0.0, 0.0),
    GainRow("body", 2250, 0.3, 0.015),
    GainRow("body", 2250, 1.0, 0.08),
)
"""For a pack without a table; after docs/benchmarks.md, for low light, fog and blur."""


def expected_gain(rows: Sequence[GainRow], kind: str, *, excess: float, visits: float) -> float:
    """Mean gain of the rows of a kind, those near the place counting most.

    Formula: Nadaraya-Watson regression with a Gaussian kernel over ``excess`` and the logarithm of ``visits``; far from
    every row it is the nearest one's.

    Args:
        rows: the table.
        kind: "head" or "body".
        excess: validation loss minus the server's on clean images, nats.
        visits: images to train on, each counted as often as it will be.

    Returns:
        accuracy to gain, a share; 0 where the table has no row of the kind.
    """
    rows = [row for row in rows if row.kind == kind]
    if not rows:
        return 0.0
    excess = excess if math.isfinite(excess) else max(row.excess for row in rows)
    apart = [
        ((row.excess - excess) / LOSS_WIDTH) ** 2 + (math.log2(row.visits / max(visits, 1)) / VISITS_WIDTH) ** 2
        for row in rows
    ]
    closest = min(apart)  # subtracted, so that the nearest row's weight is 1 however far it is
    weights = [math.exp((closest - distance) / 2) for distance in apart]
    return sum(w * row.gain for w, row in zip(weights, rows, strict=True)) / sum(weights)


def trust(promised_and_came: Sequence[tuple[float, float]]) -> float:
    """How much of a promise to believe after some were kept and some were not, 0..1."""
    promised = sum(promise for promise, _ in promised_and_came)
    came = sum(came for _, came in promised_and_came)
    return min((DOUBT + max(came, 0.0)) / (DOUBT + promised), 1.0) if promised > 0 else 1.0


# --- Decisions


BODY = ("full", "last2", "last", "affine", "first")
"""What to train where the pictures have changed: the first of these that the pack has."""
HEAD_EPOCHS = 3
"""Of the plan ``head``, where there is no closed form."""
BODY_EPOCHS = (1, 3)
"""How long a stage of the body may be."""
MOST_BODY_STAGES = 3
STEP_PRICE = 2.0
"""Joules per FLOP of training steps over those of forward passes, until a step was taken: 1.7 to 3.3 with depthwise
convolutions."""
LEAST_GAIN = 0.003
"""A third of a point is nobody's reason to train, whatever a joule is worth."""
NONSENSE = 0.8
"""Share of labels in doubt beyond which nothing more is tried: with 60 of 100 labels changed it is 0.63."""
UNPRICED_GAIN = 0.01
"""Expected gain that a stage must have where joules are not known."""


def body_of(plans: Collection[str], *, rehearsed: bool = True) -> str | None:
    """What to train where the pictures have changed; None if the pack has nothing for it.

    Without ``rehearsed`` gains not the whole network: it costs most, and on a few hundred photographs it is mostly
    undone.
    """
    return next((name for name in (BODY if rehearsed else (*BODY[1:], BODY[0])) if name in plans), None)


def head_stage(plans: Collection[str]) -> PlannedStage | None:
    """What trains the head: in closed form where that is possible, else in steps; None if neither is."""
    head = next((name for name in (RIDGE, HEAD) if name in plans), None)
    return None if head is None else PlannedStage(head, HEAD_EPOCHS if plan_kind(head).stepped else 1)


@dataclass(frozen=True)
class AutoSchedule:
    """Decides stage by stage.

    Attributes:
        plans: what the pack and the engine can do.
        statistics: whether the pack's model has any to re-estimate.
        gains: what each kind of stage gave the server.
        clean_loss: of the pack's model on the server's images, nats.
        visits: images that a stage will train on, each counted as often as it will be.
        work: FLOPs of a stage.
        min_gain_per_kj: accuracy points that a kilojoule must bring; 0 for as good as can be.
        target: validation accuracy that is good enough; None for as good as pays.
    """

    plans: Collection[str]
    statistics: bool
    gains: Sequence[GainRow]
    clean_loss: float
    visits: Callable[[PlannedStage], float]
    work: Callable[[PlannedStage], float]
    min_gain_per_kj: float
    target: float | None = None

    def planned(self, stages_done: int) -> Sequence[PlannedStage]:
        """Nothing is certain beyond the current stage."""
        return ()

    def decide(self, history: History, stages_done: int) -> NextStage:
        """The next stage, why, and what is expected of it."""
        if not history:
            if CLOSED in self.plans:
                return NextStage(PlannedStage(CLOSED, 1), "what needs no gradient comes first")
            if self.statistics:
                return NextStage(PlannedStage(BN, 1), "statistics first: no backward pass")
            stages = self._possible(())
            return NextStage(*((stages[0], "the model has no statistics to re-estimate") if stages else NOTHING))
        accuracy, loss = best_figures(history)
        if self.target is not None and accuracy >= self.target:
            return NextStage(None, f"{accuracy:.1%} of the validation set is right, {self.target:.1%} is good enough")
        doubted = max(entry.get("doubted") or 0.0 for entry in history)
        if doubted > NONSENSE:
            return NextStage(None, f"{doubted:.0%} of the labels look wrong, there is nothing to learn from")
        offers = [(stage, self._forecast(stage, loss, history)) for stage in self._possible(history)]
        if not offers:
            return NextStage(*NOTHING)
        return self._choose(offers)

    def _possible(self, history: History) -> list[PlannedStage]:
        """The head if it was not trained yet, and the body, shortest first."""
        done = [entry["plan"] for entry in history]
        stages = []
        head = head_stage(self.plans)
        if head and not {head.plan, CLOSED} & {*done}:
            stages.append(head)
        body = body_of(self.plans, rehearsed=bool(self.gains))
        if body and len({entry["training_stage"] for entry in history if entry["plan"] == body}) < MOST_BODY_STAGES:
            stages += [PlannedStage(body, epochs) for epochs in BODY_EPOCHS]
        return stages

    def _forecast(self, stage: PlannedStage, loss: float, history: History) -> Outcome:
        """By the table, and by what this run has shown of it and of the device."""
        promises, most = [], math.inf
        for entries in stages_of(history):
            plan, came = entries[0]["plan"], max(outcome_of(entries).gain, 0.0)
            if plan_kind(plan).gains is None:
                continue  # nothing was promised of statistics: what they gave makes no promise better
            visits = sum(entry["trained"] for entry in entries)
            promises.append((self._promise(plan, visits, loss_in(entries[0]["best_loss"])), came))
            if plan == stage.plan:
                most = came  # the next of a kind never gives more
        gain = min(trust(promises) * self._promise(stage.plan, self.visits(stage), loss), most)
        price = price_j(history, self.work(stage), stage.epochs, steps=plan_kind(stage.plan).stepped)
        return Outcome(gain, price)

    def _promise(self, plan: str, visits: float, loss: float) -> float:
        """What the table says of a stage that begins at this validation loss; nothing of what comes first."""
        kind = plan_kind(plan).gains
        if kind is None:
            return 0.0
        # The server rehearses no head in steps where it has a closed form, but some engines have not.
        rows = [row for row in self.gains if row.kind == kind] or GENERIC
        return expected_gain(rows, kind, excess=loss - self.clean_loss, visits=visits)

    def _choose(self, offers: Sequence[tuple[PlannedStage, Outcome]]) -> NextStage:
        """The first plan that pays, with as many epochs as the further ones are worth their own joules too."""
        chosen: tuple[PlannedStage, Outcome] | None = None
        reasons: dict[str, float] = {}  # what the longest stage of each plan gains, of those that are worth their while
        for stage, expected in offers:
            if expected.gain - reasons.get(stage.plan, 0.0) < LEAST_GAIN:
                continue  # nor are its further epochs a reason, however little the shorter stage pays
            reasons[stage.plan] = expected.gain
            if chosen is None:
                chosen = (stage, expected) if self._pays(expected) else None
            elif stage.plan == chosen[0].plan and self._pays(_beyond(expected, chosen[1])):
                chosen = (stage, expected)
        stage, expected = chosen or max(offers, key=lambda offer: self._points_per_kj(offer[1]))
        text = f"{stage.plan} is expected to gain {100 * expected.gain:.1f} points"
        if expected.energy_j is not None:
            text += f" for {expected.energy_j:.1f} J"
        return NextStage(stage if chosen else None, text if chosen else f"{text}; {self._least(expected)}", expected)

    def _least(self, refused: Outcome) -> str:
        """The bound that this forecast misses, in words."""
        if refused.energy_j is not None and refused.gain >= LEAST_GAIN:
            return f"--min-gain-per-kj asks for {self.min_gain_per_kj:g} points per kilojoule"
        least = UNPRICED_GAIN if self.min_gain_per_kj and refused.energy_j is None else LEAST_GAIN
        return f"a stage must gain at least {100 * least:.1f}"

    def _pays(self, expected: Outcome) -> bool:
        if not self.min_gain_per_kj:
            return True
        if expected.energy_j is None:
            return expected.gain >= UNPRICED_GAIN
        return self._points_per_kj(expected) >= self.min_gain_per_kj

    def _points_per_kj(self, expected: Outcome) -> float:
        joules = 1.0 if expected.energy_j is None else max(expected.energy_j, 1e-9)
        return 100 * expected.gain / (joules / 1000)


NOTHING = (None, "the pack has no further plan")


def auto_schedule(pack: Pack, settings: Settings, *, images: int, headless: bool = False) -> AutoSchedule:
    """The schedule for a pack and so many images to train on; ``headless``: the engine gives no features to fit."""
    plans = [name for name in pack.plan_names if not (headless and plan_kind(name).needs_features)]
    rate = 1.0 if settings.gate == "off" else settings.target_rate
    scores = settings.curriculum != "off"
    return AutoSchedule(
        plans=plans,
        statistics=BN in plans and bool(pack.plan(BN).buffers),
        gains=pack.manifest.gains,
        clean_loss=clean_loss(pack.manifest.calibration),
        visits=lambda stage: images * stage.epochs * (rate if plan_kind(stage.plan).stepped else 1.0),
        work=lambda stage: stage_work(pack, stage, images, rate, scores=scores),
        min_gain_per_kj=settings.min_gain_per_kj,
        target=settings.target_accuracy,
    )


def clean_loss(calibration: Calibration) -> float:
    """Mean loss of the server's own images, nats, from its deciles; 0 where they are not known."""
    deciles = [value for value in calibration.difficulty if math.isfinite(value)]
    parts = [(low + high) / 2 for low, high in itertools.pairwise(deciles)]
    return sum(parts) / len(parts) if parts else 0.0


def best_figures(history: History) -> tuple[float, float]:
    """Validation accuracy and loss of the best weights so far: those of the last stage unless it was undone."""
    stage = stages_of(history)[-1]
    entry, of = (stage[-1], "validation") if was_kept(stage) else (stage[0], "best")
    return entry[f"{of}_acc"], loss_in(entry[f"{of}_loss"])


def price_j(history: History, work: float, looks: int, *, steps: bool = True) -> float | None:
    """Joules of so many FLOPs, at this run's own joules per FLOP, and of so many looks at the validation set.

    ``steps``: they are those of training steps.
    """
    # Without the frozen backbone, which may have computed in int8: its joules tell nothing of float32.
    phases = [entry["phases"] or {} for entry in history]
    computed = [part["train"]["total_j"] for part in phases if "train" in part]
    flops = sum(entry["train_flops_t"] for entry in history) * 1e12
    look = phases[-1].get("evaluate", {}).get("total_j") if phases else None
    if steps and not any(plan_kind(entry["plan"]).stepped for entry in history):
        work *= STEP_PRICE
    # A meter too coarse for what there was reads 0, which is no price.
    if None in computed or look is None or flops <= 0 or not sum(computed) > 0:
        return None
    return float(work * sum(computed) / flops + looks * look)


def _beyond(more: Outcome, less: Outcome) -> Outcome:
    """What the further epochs add."""
    joules = None if more.energy_j is None or less.energy_j is None else more.energy_j - less.energy_j
    return Outcome(more.gain - less.gain, joules)
