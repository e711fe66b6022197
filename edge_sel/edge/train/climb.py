"""Rung after rung: asks the ladder what comes next, keeps the better model, watches limits at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_sel.edge.outputs import files, summary
from edge_sel.edge.progress import Progress
from edge_sel.edge.train.context import RungContext, Stopped
from edge_sel.edge.train.rungs import Rung
from edge_sel.edge.train.stage import RungRunner
from edge_sel.edge.train.work import work_of
from edge_sel.runs.tables import finite

if TYPE_CHECKING:
    from edge_sel.edge.session import Session


class Climb:
    """The rungs of a session.

    Every rung begins with the best weights so far: one that did not lower the guard set's loss is undone, so that the
    run never ends worse than its best rung.
    """

    def __init__(self, session: Session, progress: Progress) -> None:
        self.s, self.p = session, progress
        self._stepped = False

    def run(self) -> None:
        """Climb until the ladder ends; raises ``Stopped`` when told to."""
        progress = self.p
        context = RungContext(
            pack=self.s.pack,
            engine=self.s.engine,
            images=self.s.learning,
            gate=self.s.gate,
            settings=self.s.resolved.settings,
            folder=self.s.out,
            at_boundary=self._at_boundary,
            end_epoch=self._end_epoch,
            emit=self.s.emit,
            cpu_time=self.s.cpu_time,
            phase=self.s.recorder.phase,
        )
        while (rung := self._next_rung()) is not None:
            before = progress.weights
            RungRunner(context, rung, progress).run()
            if _loss(progress.latest_guard) < _loss(progress.best_guard):
                progress.best_guard = {**progress.latest_guard, "epoch": len(progress.history)}
            else:
                progress.weights = before
                self.s.emit("reverted", plan=rung.plan)
            progress.rung_plan = ""

    def _next_rung(self) -> Rung | None:
        """The rung that a checkpoint was saved in, or the ladder's next one."""
        progress = self.p
        if progress.rung_plan:
            rung, why = Rung(progress.rung_plan, progress.rung_epochs), "goes on"
        else:
            found, why = self.s.ladder.decide(progress.history, progress.rung)
            if found is None:
                progress.decisions.append({"rung": progress.rung, "plan": None, "epochs": 0, "why": why})
                self.s.emit("climbed", why=why)
                return None
            rung = found
            progress.decisions.append({"rung": progress.rung, "plan": rung.plan, "epochs": rung.epochs, "why": why})
        self.s.emit("rung", plan=rung.plan, epochs=rung.epochs, why=why)
        progress.rung_plan, progress.rung_epochs = rung
        return rung

    def _at_boundary(self, runner: RungRunner) -> None:
        progress = runner.p
        at = {"plan_epoch": progress.epoch, "cursor": progress.cursor, "step": progress.step}
        self.s.listener({"event": "step", **at, "trained": progress.tally.trained})
        if not self._stepped and progress.tally.computed:
            self._stepped = True
            self.s.emit("first_step", unix_s=self.s.wall_clock())
        signal = self.s.should_stop()
        limit = None
        if self.s.limits and not signal:
            limit = self._govern(runner)
            signal = self.s.should_stop()  # it may have come during a pause
        now_s = self.s.clock()
        if signal or limit or now_s - self.s.saved_s >= self.s.resolved.settings.checkpoint_every_s:
            progress.trainer = runner.trainer.state()
            self.s.save(progress)
        if signal or limit:
            raise Stopped(signal or limit or "", None if signal else runner.weights())

    def _govern(self, runner: RungRunner) -> str | None:
        """Wait as long as the limits want; the reason if one of them ends the run."""
        rate = 1.0 if self.s.gate.open else self.s.gate.rate
        planned = self.s.ladder.planned(runner.p.rung)
        scores = self.s.resolved.settings.curriculum != "off"
        ahead = work_of(self.s.pack, planned, len(self.s.learning), rate, scores=scores)
        reason = self.s.governor.at_boundary(runner.work_left() + ahead)
        self.s.gate.pressure = self.s.governor.pressure
        return reason

    def _end_epoch(self, runner: RungRunner, figures: Mapping[str, Any]) -> None:
        progress = runner.p
        guard = self.s.evaluate(runner.weights(), self.s.guard)
        spent, figure = self.s.ledger.end_epoch()
        progress.latest_guard = guard.to_json(self.s.images.classes)
        entry = summary.epoch_entry(progress, figures, guard, spent, figure, self.s.images.classes)
        progress.history.append(finite(entry))
        files.write_history(self.s.out / "history.csv", progress.history, self.s.images.classes)
        self.s.emit("epoch", **{key: value for key, value in entry.items() if key != "classes"})
        self.s.governor.skip()


def _loss(guard: Mapping[str, Any]) -> float:
    """In nats; infinite where it is not a number."""
    loss = float(guard["loss"])
    return loss if math.isfinite(loss) else math.inf
