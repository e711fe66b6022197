"""The ladder of ``--plan auto``: it climbs while embarrassment falls per joule, and may decide not to train.

1. ``bn``: batch normalisation's statistics from the device's own images, no backward pass. What that does to the guard
   set tells what has changed: if it helps, the pictures have; if it does not, their classes have.
2. Stop when the guard set embarrasses the model no more, or hardly more, than the server's own images did.
3. ``head`` on cached features, the cheapest plan with a backward pass, where the classes have changed: the device has
   some of its own, or new statistics did no good, or there are none.
4. ``full``, which gained as much per joule as any other plan wherever the pictures had changed (docs/field.md), for
   as many epochs as there is embarrassment left. Once more while the guard's loss falls fast enough.

Each decision is a pure function of the history, so that a resumed run decides as the uninterrupted one did. Joules are
told but do not decide: they are not the same on every run. Epochs of one plan cost the same, so a gain per epoch is a
gain per joule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_sel.edge.train.rungs import Rung
from edge_sel.pack.manifest import PlanInfo
from edge_sel.pack.reader import Pack

BODY = ("full", "last2", "last", "affine", "first")
"""What to train where the pictures have changed: the first of these that the pack has."""

HEAD_EPOCHS = 3
UNKNOWN_EPOCHS = 2
E_PER_EPOCH = 0.2
"""Nats of embarrassment beyond the server's that are worth one epoch; less than half of that is worth nothing."""
MOST_EPOCHS = 6
MOST_BODY_RUNGS = 2
LEAVE_BELOW = 0.1
"""Nats of the guard's loss per epoch: a rung that gained less was the last."""


def auto_ladder(pack: Pack, classes: int) -> AutoLadder:
    """The ladder for a pack on a device that knows so many classes."""
    known = [e for e in pack.manifest.calibration.embarrassment if e is not None]
    clean_e = sum(known) / len(known) if known else None
    return AutoLadder(pack.manifest.plans, clean_e, new_classes=classes > len(pack.manifest.model.classes))


class AutoLadder:
    """Decides rung by rung.

    Args:
        plans: those of the pack.
        clean_e: embarrassment of the pack's model on the server's images, nats; None if that is not known.
        new_classes: the device has classes that the pack lacks.

    """

    def __init__(self, plans: Mapping[str, PlanInfo], clean_e: float | None, *, new_classes: bool) -> None:
        self._plans = plans
        self._clean_e = clean_e
        self._new_classes = new_classes
        self._body = next((name for name in BODY if name in plans), None)

    def planned(self, visited: int) -> Sequence[Rung]:
        """Nothing is certain beyond the current rung."""
        return ()

    def decide(self, history: Sequence[Mapping[str, Any]], visited: int) -> tuple[Rung | None, str]:
        """The next rung, and why."""
        if not history:
            if "bn" in self._plans and self._plans["bn"].buffers:
                return Rung("bn", 1), "statistics first: no backward pass"
            if "head" in self._plans:
                return Rung("head", HEAD_EPOCHS), "the model has no statistics to re-estimate"
            return self._train_body(None)
        rung = [entry for entry in history if entry["rung"] == history[-1]["rung"]]
        plan, start, end = rung[-1]["plan"], rung[0]["best_loss"], rung[-1]["guard_loss"]
        helped = end is not None and (start is None or end < start)
        now_e = rung[-1]["guard_e"] if helped else rung[0]["best_e"]
        if now_e is not None and self._clean_e is not None and now_e <= self._clean_e:
            return None, f"embarrassed by {now_e:.3f} nats, on the server's images by {self._clean_e:.3f}"
        if plan == "bn":
            return self._after_statistics(now_e, helped=helped)
        if plan == "head":
            return self._train_body(now_e)
        return self._after_body(history, rung, now_e)

    def _after_statistics(self, now_e: float | None, *, helped: bool) -> tuple[Rung | None, str]:
        if "head" in self._plans and (self._new_classes or not helped):
            why = "the device has classes of its own" if self._new_classes else "new statistics did no good"
            return Rung("head", HEAD_EPOCHS), why
        return self._train_body(now_e)

    def _train_body(self, now_e: float | None) -> tuple[Rung | None, str]:
        """As many epochs as embarrassment is left."""
        if self._body is None:
            return None, "the pack has no further plan"
        if now_e is None or self._clean_e is None:
            return Rung(self._body, UNKNOWN_EPOCHS), "how much embarrassment is left is not known"
        told = f"embarrassed by {now_e - self._clean_e:.3f} nats more than on the server"
        epochs = round((now_e - self._clean_e) / E_PER_EPOCH)
        if epochs and self._new_classes:
            epochs += 1  # the mean over classes hides how little is known of the new ones
        return (Rung(self._body, min(epochs, MOST_EPOCHS)) if epochs else None), told

    def _after_body(
        self, history: Sequence[Mapping[str, Any]], rung: Sequence[Mapping[str, Any]], now_e: float | None
    ) -> tuple[Rung | None, str]:
        start, end = rung[0]["best_loss"], rung[-1]["guard_loss"]
        if start is None or end is None:
            return None, f"{self._body} diverged"
        gain = (start - end) / len(rung)
        told = f"the guard's loss {'fell' if gain > 0 else 'rose'} by {abs(gain):.3f} nats per epoch"
        joules = [entry["energy_j"] for entry in rung]
        if gain > 0 and None not in joules and sum(joules) > 0:
            told += f", {(start - end) / sum(joules):.2g} per joule"
        rungs = len({entry["rung"] for entry in history if entry["plan"] == self._body})
        if gain < LEAVE_BELOW:
            return None, told
        if rungs >= MOST_BODY_RUNGS:
            return None, f"{told}, but {rungs} times is enough"
        further, left = self._train_body(now_e)
        return further, told if further else f"{told}; {left}"
