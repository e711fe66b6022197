"""What a listener is told at every boundary of a step; the live line of the terminal is made of it."""

from __future__ import annotations

from typing import Any

from edge_sel.edge.energy import EnergyLedger
from edge_sel.edge.train.stage import TrainingStage
from edge_sel.power.recorder import EnergyRecorder


def step_event(stage: TrainingStage, ledger: EnergyLedger, recorder: EnergyRecorder) -> dict[str, Any]:
    """The event ``step``; what costs something to know (``work_left``, ``spent``, ``temp_c``) is a function.

    Args:
        stage: at a boundary of a step.
        ledger: what the run has spent.
        recorder: knows the temperature.
    """
    state, totals, (seen, images) = stage.state, stage.state.totals, stage.seen
    return {
        "event": "step", "plan_epoch": state.epoch, "epochs": state.epochs, "cursor": seen, "images": images,
        "step": state.step, "trained": totals.trained, "candidates": totals.candidates, "passed": totals.passed,
        "work_left": stage.work_left, "spent": ledger.booked, "temp_c": recorder.max_temperature_c,
    }  # fmt: skip
