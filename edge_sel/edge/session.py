"""A fine-tuning session: split, evaluate, train stage after stage, judge, write (docs/explanation/session.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from edge_sel.arrays import Arrays
from edge_sel.edge.energy import Bookkeeper, EnergyLedger, Spent
from edge_sel.edge.governor import Governor
from edge_sel.edge.judge import Judge
from edge_sel.edge.memory import Shortage, trim
from edge_sel.edge.open import RunInputs, SplitImages
from edge_sel.edge.outputs.logs import EventLog, epoch_entry
from edge_sel.edge.outputs.model_files import Learnt, import_onnx, learnt_now
from edge_sel.edge.outputs.session_folder import SessionFolder
from edge_sel.edge.outputs.summary import accuracy_block, insight_block, run_summary, trouble_block
from edge_sel.edge.progress import Progress, StageState, extend_head, original_weights
from edge_sel.edge.ship import decide, keep_if_better
from edge_sel.edge.train.closed_form_stage import ClosedFormStage
from edge_sel.edge.train.gate import Gate
from edge_sel.edge.train.schedule import Schedule, outcome_of, stages_of
from edge_sel.edge.train.sel_stage import SelStage
from edge_sel.edge.train.stage import (
    EpochDone,
    FittedSamples,
    PrecisionChosen,
    StageInputs,
    StatisticsStage,
    TrainingStage,
)
from edge_sel.edge.train.work import work_of
from edge_sel.pack.plan_kinds import CLOSED_FORM, STATISTICS, STEPS
from edge_sel.pack.weights import Expert
from edge_sel.power.throttle import new_throttling
from edge_sel.sel.embarrassment import init_sums

STAGES: Mapping[str, type[TrainingStage]] = {
    STATISTICS: StatisticsStage, CLOSED_FORM: ClosedFormStage, STEPS: SelStage,
}  # fmt: skip
"""Which stage trains a kind of plan."""
WRITES = 3
"""How many times the writing of a checkpoint the writing of the results is expected to take."""


class Stop(NamedTuple):
    """The session was told to stop; ``weights`` are those to judge and to write, None if there is no time for that."""

    reason: str
    weights: Arrays | None


@dataclass
class Session:
    """One run of fine-tuning; ``build_session`` makes one, with all that it works with.

    Every stage begins with the best weights so far: one that did not lower the loss on the validation set is undone,
    so that the run never ends worse than its best stage.

    Attributes:
        given: to the run.
        split: its images by what they are for.
        schedule: which plans, in which order.
        gate: picks the images that are worth a gradient.
        judge: looks at the model with the images that were held back.
        ledger: keeps what the run has spent.
        book: the journal of what is spent; says when a checkpoint is due.
        governor: holds the run to its limits.
        folder: of the run.
        emit: records and tells an event.
        progress: all that changes; where an earlier part of the run ended, or the beginning.
        facts: what ``run.json`` tells of what the run was given.
        learnt: what the model in service has learnt, at last the new one if it ships; None where nobody knows.

        judged: the state that the last judgement was of; None before it.
        fitted: what the head was fitted to in closed form, if this process did.
    """

    given: RunInputs
    split: SplitImages
    schedule: Schedule
    gate: Gate
    judge: Judge
    ledger: EnergyLedger
    book: Bookkeeper
    governor: Governor
    folder: SessionFolder
    emit: EventLog
    progress: Progress
    facts: Mapping[str, Any]
    learnt: Learnt | None

    def __post_init__(self) -> None:
        self.pack, self.classes, self.host = self.given.pack, self.given.classes, self.given.host
        self.judged: Progress | None = None
        self.fitted: FittedSamples | None = None
        self._throttled_before = self.host.throttling()
        self._stepped = False
        self._memory_short = Shortage(self.progress.batch_limit, self.emit)

    def run(self) -> dict[str, Any]:
        """Run to the end or to a stop; returns the object that ``--json`` prints and ``run.json`` holds.

        A run that had already come to its end is returned as it is; damaged files of it are restored.
        """
        if self.folder.finished is not None:
            return self.folder.restored(self.folder.finished, self.emit)
        self.book.begin(self.ledger.booked, self.governor.expected)
        self.folder.begin(self.emit)
        summary = self._run()
        self.book.end(self.emit)
        return summary

    def _run(self) -> dict[str, Any]:
        event = "resumed" if self.progress.before else "started"
        self.emit(event, images=len(self.split.training), validation=len(self.split.validation))
        if not self.progress.before:
            self._look_first()
        limit = self.governor.at_boundary(None)
        if signal := self.host.should_stop() if self.given.limits else None:  # it came while the limits let it wait
            self._save()
            stop: Stop | None = Stop(signal, None)
        else:
            stop = Stop(limit, self.progress.latest_weights()) if limit else self._train()
        if stop is None:
            return self._finish("done")
        self.emit("stopped", reason=stop.reason)
        if stop.weights is None:
            return self._summary(stop.reason, None, None, shipped=False, evidence=None)
        summary = self._finish(stop.reason, stop.weights)
        self._save()  # once more, for the joules that the end took
        return summary

    # Before training

    def _look_first(self) -> None:
        """Where the model stands before anything is changed, and what looking and writing take."""
        judge, classes = self.judge, self.classes
        own: dict[str, Any] = {}
        if self.pack.exported is not None:  # first: what follows is by the model in service, whose features are kept
            of_pack = original_weights(self.pack.exported, len(classes))
            own = {"pack": judge.look_at_test(of_pack, judge.validate(of_pack).to_json(classes))}
        weights = self.progress.weights
        seen = judge.validate(weights)
        before = {**judge.look_at_test(weights, seen.to_json(classes)), **own}
        predictions = self.progress.predictions._replace(before=seen.logits, best=seen.logits)
        best = before["validation"]
        self.progress = replace(self.progress, before=before, best_validation=best, predictions=predictions)
        self.emit("evaluated", accuracy=accuracy_block(before, None))
        spent, _ = self.ledger.end_epoch()
        if self.given.expert is not None:
            self._look_at_expert(self.given.expert, seen.accuracy)
        self._memory_short()
        # A guess first, for a run that is killed now, or that is given limits only when it is resumed.
        self.governor.expect(self._closing_forecast(spent, None))
        if self.given.limits:
            import_onnx()
        if self.given.limits or self.book.cuts:
            began_s = self.host.clock()
            self._save()
            write_s = self.host.clock() - began_s
            self.governor.expect(self._closing_forecast(spent, write_s))

    def _look_at_expert(self, expert: Expert, accuracy: float) -> None:
        """Begin with the server's weights for this place if they are better here."""
        weights = extend_head(expert.weights, self.pack.manifest.model, len(self.classes))
        found = self.judge.validate(weights)
        begun = keep_if_better(self.progress, self.judge, weights, found.to_json(self.classes), found.logits)
        self.emit("expert", taken=begun is not self.progress, accuracy=found.accuracy, instead_of=accuracy)
        self.progress = begun
        self.ledger.end_epoch()  # what this look took is the run's, not that of the first epoch

    def _closing_forecast(self, spent: Spent, write_s: float | None) -> dict[str, float | None]:
        """What the end will take, from what the first look took and a write takes; None is guessed."""
        anchors, held = self.pack.anchors, len(self.split.validation)
        looks = held + len(self.given.test or ())
        held += 0 if anchors is None else len(anchors.known)
        write_s = spent.seconds / WRITES if write_s is None else write_s
        # Once for the last judgement, once for the epoch that may just be ending.
        seconds = 1.1 * spent.seconds * (1 + held / looks) + WRITES * write_s
        watts = None if spent.total_j is None or spent.seconds <= 0 else spent.total_j / spent.seconds
        return {"closing_s": seconds, "closing_j": None if watts is None else watts * seconds}

    # Training

    def _train(self) -> Stop | None:
        """Stage after stage until the schedule ends; None then, or what stopped it."""
        while self._begin_stage():
            if stop := self._run_stage():
                return stop
        return None

    def _begin_stage(self) -> bool:
        """Make the schedule's next stage current, unless a checkpoint was saved inside one; False at its end."""
        progress, stage = self.progress, self.progress.stage
        if stage.plan:
            why = "goes on"
        else:
            planned, why, expected = self.schedule.decide(progress.history, progress.stages_done)
            plan, epochs = planned or (None, 0)
            decision: dict[str, Any] = {
                "training_stage": progress.stages_done, "plan": plan, "epochs": epochs, "why": why
            }  # fmt: skip
            if expected is not None:
                decision["expected"] = expected._asdict()
            self.progress = replace(progress, decisions=[*progress.decisions, decision])
            if planned is None:
                self.emit("stages_ended", why=why)
                return False
            stage = StageState(*planned, sums=init_sums(len(self.classes)))
            self.progress = replace(self.progress, stage=stage)
            if expected is not None:  # joules decided: whoever goes on from here decides the same
                self._save()
        self.emit("stage_begun", plan=stage.plan, epochs=stage.epochs, why=why)
        return True

    def _run_stage(self) -> Stop | None:
        """Iterate the current stage to its end, and keep its weights if they are better; or what stopped it."""
        progress = self.progress
        inputs = StageInputs(self.given, self.split, self.gate, progress.batch_limit, outlive=self.book.cuts > 0)
        kind = STAGES[self.pack.plan(progress.stage.plan).kind.trained_by]
        with kind(inputs, progress.stages_done, progress.weights, progress.stage, progress.memory) as stage:
            for event in stage.events():
                if isinstance(event, PrecisionChosen):
                    self.emit("backbone_precision", **event.figures)
                    self._save_inside(stage)  # a clock decided: whoever goes on from here decides the same
                    continue
                if isinstance(event, EpochDone):
                    self._end_epoch(stage, event)
                if stop := self._at_boundary(stage):
                    return stop
            weights = stage.weights()
        if self._end_stage(weights):
            self.fitted = stage.fitted or self.fitted
        return None

    def _end_stage(self, weights: Arrays) -> bool:
        """Keep the weights that a stage ended with if they are better, note what came of it; whether they are."""
        progress = self.progress
        best = {**progress.latest_validation, "epoch": len(progress.history)}
        ended = keep_if_better(progress, self.judge, weights, best, progress.predictions.latest)
        kept = ended is not progress
        if not kept:
            self.emit("reverted", plan=progress.stage.plan)
        history = [*progress.history[:-1], {**progress.history[-1], "kept": kept}]
        came = outcome_of(stages_of(history)[-1])._asdict()
        decisions = [*progress.decisions[:-1], {**progress.decisions[-1], "came": came}]
        done = progress.stages_done + 1
        self.progress = replace(ended, history=history, stage=StageState(), stages_done=done, decisions=decisions)
        return kept

    def _end_epoch(self, stage: TrainingStage, event: EpochDone) -> None:
        """Judge the epoch on the validation set, and enter it into the history."""
        classes = self.classes
        found = self.judge.validate(stage.weights())
        spent, figure = self.ledger.end_epoch()
        entry = epoch_entry(self.progress, event.figures, found, spent, figure, classes)
        history = [*self.progress.history, entry]
        latest = self.progress.predictions._replace(latest=found.logits)
        self.progress = replace(
            self.progress, history=history, latest_validation=found.to_json(classes), predictions=latest
        )
        self.folder.write_history(self.progress)
        self.emit("epoch", **{key: value for key, value in entry.items() if key != "classes"})
        self.governor.skip()

    def _at_boundary(self, stage: TrainingStage) -> Stop | None:
        """Tell, ask signals and limits, save where it is time to; what stops the run, if anything."""
        self.book.tick()
        state = stage.state
        self.host.listener(self._step_event(stage))
        fitted = self.pack.plan(state.plan).kind.trained_by == CLOSED_FORM and state.epoch
        if not self._stepped and (state.totals.computed or fitted):
            self._stepped = True
            self.emit("first_step", unix_s=self.host.wall_clock())
        signal, limit = self.host.should_stop(), None
        if self.given.limits and not signal:
            limit = self._govern(stage)
            signal = self.host.should_stop()  # it may have come during a pause
        if self._memory_short() or signal or limit or self.book.checkpoint_due():
            self._save_inside(stage)
        if signal:
            return Stop(signal, None)
        return Stop(limit, stage.weights()) if limit else None

    def _step_event(self, stage: TrainingStage) -> dict[str, Any]:
        """What a listener is told at a boundary; what costs something to know is a function."""
        state, totals, (seen, images) = stage.state, stage.state.totals, stage.seen
        return {
            "event": "step", "plan_epoch": state.epoch, "epochs": state.epochs, "cursor": seen, "images": images,
            "step": state.step, "trained": totals.trained, "candidates": totals.candidates, "passed": totals.passed,
            "work_left": stage.work_left, "spent": self.ledger.booked, "temp_c": self.given.recorder.max_temperature_c,
        }  # fmt: skip

    def _govern(self, stage: TrainingStage) -> str | None:
        """Wait as long as the limits want; the reason if one of them ends the run."""
        planned = self.schedule.planned(self.progress.stages_done)
        scores = self.given.settings.curriculum != "off"
        ahead = work_of(self.pack, planned, len(self.split.training), self.gate.planned_rate, scores=scores)
        reason = self.governor.at_boundary(stage.work_left() + ahead)
        self.gate.pressure = self.governor.pressure
        return reason

    def _save_inside(self, stage: TrainingStage) -> None:
        """Write a checkpoint of where a stage stands."""
        stage.snapshot()
        self._save()

    def _save(self) -> None:
        """Write a checkpoint."""
        run_spent, epoch_spent = self.ledger.so_far()
        forecast = self.governor.expected()
        self.progress = replace(self.progress, run_spent=run_spent, epoch_spent=epoch_spent, forecast=forecast)
        with self.given.recorder.phase("checkpoint"):
            name = self.folder.save(self.progress)
        if name is not None:
            self.emit("checkpoint", file=name)
        self.book.saved()
        self.governor.skip()

    def _finish(self, stopped: str, latest: Arrays | None = None) -> dict[str, Any]:
        """The last judgement, then the files; the original weights ship when training did not beat them.

        ``latest`` are the weights of a run that was stopped inside a stage.
        """
        progress = self.progress  # and stays: whoever resumes goes on from where the stage stood
        if latest is not None:
            seen = self.judge.validate(latest)
            figures, logits = seen.to_json(self.classes), seen.logits
            progress = keep_if_better(progress, self.judge, latest, figures, logits)
        self.judged = progress
        shipped, evidence = decide(progress, self.judge)
        after = self.judge.look_at_test(progress.weights, progress.best_validation)
        start, end = progress.before["validation"], after["validation"]
        self.emit("decided", before=start["accuracy"], after=end["accuracy"], shipped=shipped, why=evidence["why"])
        trim()
        with self.given.recorder.phase("checkpoint"):
            weights = progress.weights if shipped else original_weights(self.pack, len(self.classes))
            self.folder.write_model(weights)
            if shipped and self.learnt is not None:
                of, said = progress.predictions.left_out_of, progress.predictions.left_out
                self.learnt = learnt_now(self.learnt, self.split.hashes, of, said, len(self.classes))
            self.folder.write_learnt(self.learnt)
        if "test" in after and progress.history and stopped == "done":
            self.progress = progress.with_test_of_best(after["test"]["accuracy"])
            self.folder.write_history(self.progress)
        self._memory_short()
        summary = self._summary(stopped, after, progress, shipped=shipped, evidence=evidence)
        self.folder.write_summary(summary)
        self.emit("finished", shipped=shipped)
        return summary

    def _summary(
        self, stopped: str, after: Mapping[str, Any] | None, judged: Progress | None, *, shipped: bool,
        evidence: dict[str, Any] | None,
    ) -> dict[str, Any]:  # fmt: skip
        spent, figure = self.ledger.end_run()
        self.progress = replace(self.progress, run_spent=spent)
        throttled = new_throttling(self._throttled_before, self.host.throttling())
        ended: dict[str, Any] = {"shipped": shipped, "evidence": evidence, "stopped": stopped}
        ended |= trouble_block(self.progress, self.split.training, figure, throttled, self.given.settings)
        if self.given.shared is not None:
            ended["feature_store"] = self.given.shared.as_dict()
        ended["outputs"] = {} if after is None else self.folder.digests()
        if judged is not None:
            ended |= insight_block(
                replace(judged, run_spent=spent), self.pack, self.split.training, self.split.validation
            )
        return run_summary(self.progress, after, figure, self.given.recorder.cost(), {**self.facts, **ended})
