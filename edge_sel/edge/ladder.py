"""The ladder of ``--plan auto``: it climbs while embarrassment falls per joule, and may decide not to train.

Each decision is a pure function of the history, so that a resumed run decides as the uninterrupted one did:

1. ``bn``: batch normalisation's statistics from the device's own images, no backward pass.
2. Stop if the guard set embarrasses the model no more than the server's own images did.
3. ``probe``: gradients on a few batches say what a step of each plan would gain on *other* images (its guilt), and the
   meter what it costs. The plan with the most guilt per joule is next, for as many epochs as its guilt asks for.
4. Leave a plan after its epochs. Go on, by a new probe, while the guard's loss falls fast enough per joule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_sel.edge.rungs import PROBE, Rung
from edge_sel.pack.manifest import PlanInfo
from edge_sel.pack.reader import Pack

LEAST_GUILT = 2e-4
"""Nats per step on other images: below this nothing pays."""
GUILT_PER_EPOCH = 1.2e-3
"""Nats per step that are worth an epoch more."""
MOST_EPOCHS = 6
MOST_RUNGS = 2
LEAVE_BELOW = 0.01
"""Nats of the guard's loss per epoch: a plan that gained less was the last."""


def auto_ladder(pack: Pack) -> AutoLadder:
    """The ladder for a pack."""
    known = [e for e in pack.manifest.calibration.embarrassment if e is not None]
    return AutoLadder(pack.manifest.plans, sum(known) / len(known) if known else None)


class AutoLadder:
    """Decides rung by rung.

    Args:
        plans: those of the pack.
        clean_loss: embarrassment of the pack's model on the server's images, nats; None if that is not known.

    """

    def __init__(self, plans: Mapping[str, PlanInfo], clean_loss: float | None) -> None:
        self._plans = plans
        self._clean_loss = clean_loss

    def planned(self, visited: int) -> Sequence[Rung]:
        """Nothing is certain beyond the current rung."""
        return ()

    def decide(self, history: Sequence[Mapping[str, Any]], visited: int) -> tuple[Rung | None, str]:
        """The next rung, and why."""
        if not history:
            if "bn" in self._plans and self._plans["bn"].buffers:
                return Rung("bn", 1), "statistics first: no backward pass"
            return Rung(PROBE, 1), "the model has no statistics to re-estimate"
        last = history[-1]
        if last["plan"] == PROBE:
            return self._after_probe(last["probe"])
        if last["plan"] == "bn":
            now_e = last["guard_e"]  # None where the model diverged
            if self._clean_loss is not None and now_e is not None and now_e <= self._clean_loss:
                told = f"{now_e:.3f} nats, on the server's images {self._clean_loss:.3f}"
                return None, f"no more embarrassed than on the server's images: {told}"
            return Rung(PROBE, 1), "still embarrassed"
        return self._after_training(history)

    def _after_probe(self, probe: Mapping[str, Mapping[str, float | None]]) -> tuple[Rung | None, str]:
        known = {plan: told["guilt"] for plan, told in probe.items() if told["guilt"] is not None}
        paying = [plan for plan, nats in known.items() if nats >= LEAST_GUILT]
        if not paying:
            return None, f"no plan gains {LEAST_GUILT:g} nats per step"
        name = max(paying, key=lambda plan: probe[plan]["guilt_per_j"] or 0.0)
        epochs = min(max(round(known[name] / GUILT_PER_EPOCH), 1), MOST_EPOCHS)
        return Rung(name, epochs), f"{name} has the most guilt per joule, {known[name]:.2g} nats per step"

    def _after_training(self, history: Sequence[Mapping[str, Any]]) -> tuple[Rung | None, str]:
        trained = [entry for entry in history if entry["plan"] not in (PROBE, "bn")]
        rungs = len({entry["rung"] for entry in trained})
        epochs = [entry for entry in trained if entry["rung"] == trained[-1]["rung"]]
        start, end = epochs[0]["best_loss"], epochs[-1]["guard_loss"]
        if start is None or end is None:
            return None, f"{epochs[-1]['plan']} diverged"
        gain = (start - end) / len(epochs)
        if gain < LEAVE_BELOW:
            return None, f"the guard's loss fell by {gain:.3f} nats per epoch"
        if rungs >= MOST_RUNGS:
            return None, f"{rungs} plans were tried"
        return Rung(PROBE, 1), f"the guard's loss still falls, by {gain:.3f} nats per epoch"
