"""The first look of a session: where the model stands, which weights to begin with, what the end will take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edge_sel.arrays import Arrays
from edge_sel.config.settings import Settings
from edge_sel.edge.energy import EnergyLedger, Spent
from edge_sel.edge.judge import Judge
from edge_sel.edge.outputs.logs import EventLog
from edge_sel.edge.outputs.summary import accuracy_block
from edge_sel.edge.progress import Progress, original_weights
from edge_sel.edge.ship import keep_if_better
from edge_sel.pack.reader import Pack

WRITES = 3
"""How many times the writing of a checkpoint the writing of the results is expected to take."""


def look_first(
    progress: Progress,
    pack: Pack,
    expert: Arrays | None,
    judge: Judge,
    ledger: EnergyLedger,
    emit: EventLog,
    settings: Settings,
) -> tuple[Progress, Spent]:
    """Where the model stands before anything is changed, and what that look took.

    ``expert`` are weights of the server for this place: the run begins with them if they are better here.
    """
    classes = judge.validation.classes
    own: dict[str, Any] = {}
    if pack.exported is not None:  # first: what follows is by the model in service, whose features are kept
        of_pack = original_weights(pack.exported, len(classes))
        own = {"pack": judge.look_at_test(of_pack, judge.validate(of_pack).to_json(classes))}
    seen = judge.validate(progress.weights)
    before = {**judge.look_at_test(progress.weights, seen.to_json(classes)), **own}
    predictions = progress.predictions._replace(before=seen.logits, best=seen.logits)
    progress = replace(progress, before=before, best_validation=before["guard"], predictions=predictions)
    emit("evaluated", accuracy=accuracy_block(before, None))
    spent, _ = ledger.end_epoch()
    if expert is not None:
        found = judge.validate(expert)
        begun = keep_if_better(progress, pack, judge, expert, found.to_json(classes), found.logits, settings)
        emit("expert", taken=begun is not progress, accuracy=found.accuracy, instead_of=seen.accuracy)
        progress = begun
        ledger.end_epoch()  # what this look took is the run's, not that of the first epoch
    return progress, spent


def closing_forecast(pack: Pack, judge: Judge, spent: Spent, write_s: float | None) -> dict[str, float | None]:
    """What the end will take, from what the first look took and a write takes; None is guessed."""
    anchors = pack.anchors
    held, looks = len(judge.validation), len(judge.validation) + len(judge.test or ())
    held += 0 if anchors is None else len(anchors.known)
    write_s = spent.seconds / WRITES if write_s is None else write_s
    # Once for the last judgement, once for the epoch that may just be ending.
    seconds = 1.1 * spent.seconds * (1 + held / looks) + WRITES * write_s
    watts = None if spent.total_j is None or spent.seconds <= 0 else spent.total_j / spent.seconds
    return {"closing_s": seconds, "closing_j": None if watts is None else watts * seconds}
