"""The end of a training stage: its weights are kept if they are better, and what came of it is noted."""

from __future__ import annotations

from dataclasses import replace

from edge_sel.arrays import Arrays
from edge_sel.config.settings import Settings
from edge_sel.edge.judge import Judge
from edge_sel.edge.outputs.event_log import EventLog
from edge_sel.edge.progress import Progress
from edge_sel.edge.ship import keep_if_better
from edge_sel.edge.train.ladder import outcome_of, stages_of
from edge_sel.edge.train.state import StageState
from edge_sel.pack.reader import Pack


def end_stage(
    progress: Progress, pack: Pack, judge: Judge, weights: Arrays, emit: EventLog, settings: Settings
) -> Progress:
    """The state after the stage, which ended with these weights."""
    best = {**progress.latest_validation, "epoch": len(progress.history)}
    ended = keep_if_better(progress, pack, judge, weights, best, progress.predictions.latest, settings)
    kept = ended is not progress
    if not kept:
        emit("reverted", plan=progress.stage.plan)
    history = [*progress.history[:-1], {**progress.history[-1], "kept": kept}]
    came = outcome_of(stages_of(history)[-1])._asdict()
    decisions = [*progress.decisions[:-1], {**progress.decisions[-1], "came": came}]
    done = progress.stages_done + 1
    return replace(ended, history=history, stage=StageState(), stages_done=done, decisions=decisions)
