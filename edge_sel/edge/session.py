"""A fine-tuning session: split, evaluate, climb the rungs, guard, write. docs/session.md lists the files it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.config.settings import Resolved
from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import require_trainable
from edge_sel.data.split import stratified_split
from edge_sel.edge.evaluate import Evaluation, evaluate
from edge_sel.edge.free_memory import trim
from edge_sel.edge.governor.from_settings import make_sense
from edge_sel.edge.governor.governor import Governor
from edge_sel.edge.governor.limits import Limit
from edge_sel.edge.head import extend_head
from edge_sel.edge.outputs import files
from edge_sel.edge.outputs import summary as result
from edge_sel.edge.outputs.energy import Ledger
from edge_sel.edge.outputs.identity import finished_run, identify, unfinished_run
from edge_sel.edge.progress import Progress, start_progress, to_tensors
from edge_sel.edge.train.climb import Climb
from edge_sel.edge.train.context import Stopped
from edge_sel.edge.train.gate import Gate, intensities
from edge_sel.edge.train.rungs import Ladder
from edge_sel.engines.base import Engine
from edge_sel.pack.reader import Pack
from edge_sel.power.battery import Supply
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.power.throttle import Throttle, new_throttling
from edge_sel.runs.checkpoint import list_checkpoints, save_checkpoint
from edge_sel.runs.tables import finite, write_json

GUARD_CAP = 500
"""Most images in the guard set: beyond this an evaluation costs more than its precision is worth."""

WRITES = 3
"""How many times the writing of a checkpoint the writing of the results is expected to take."""


@dataclass
class Session:
    """Everything a run needs, passed in.

    Args:
        pack: the verified pack.
        images: the device's labelled images; classes beyond the pack's extend the head.
        test: images that no decision looks at, for before/after; may be None.
        engine: executes the graphs.
        ladder: which plans, in which order.
        resolved: settings with their origins.
        recorder: a started energy recorder.
        out: the run's folder.
        should_stop: asked at every step boundary; a reason stops the run, resumably.
        listener: told every event.
        clock: monotonic seconds, for checkpoint intervals and event times.
        cpu_time: processor seconds of this process, for what is chosen by its cost.
        wall_clock: Unix seconds, for the event of the first gradient step.
        source: what ``images`` are, for the report.
        limits: what the governor holds the run to.
        supply: charge and mains of the device.
        sleep: waits, when the governor says so.
        minute: of the local day.
        throttling: what slows the device down, now and since it was started.
    """

    pack: Pack
    images: ImageSet
    test: ImageSet | None
    engine: Engine
    ladder: Ladder
    resolved: Resolved
    recorder: EnergyRecorder
    out: Path
    should_stop: Callable[[], str | None] = lambda: None
    listener: Callable[[dict[str, Any]], None] = lambda event: None
    clock: Callable[[], float] = time.monotonic
    cpu_time: Callable[[], float] = time.process_time
    wall_clock: Callable[[], float] = time.time
    source: str = ""
    limits: Sequence[Limit] = ()
    supply: Callable[[], Supply] = lambda: Supply(None, None)
    sleep: Callable[[float], None] = time.sleep
    minute: Callable[[], int] = lambda: 0
    throttling: Callable[[], list[Throttle]] = list
    saved_s: float = field(default=0.0, init=False)
    _stepped: bool = field(default=False, init=False)

    def run(self, *, resume: bool = False) -> dict[str, Any]:
        """Run to the end or to a stop; returns the object that ``--json`` prints and ``run.json`` holds.

        Raises:
            DataError: fewer than two classes, or a class with a single image.
            UsageError: the folder holds another run, or the run to resume is of other images, pack or settings.
        """
        require_trainable(self.images, where=self.source or None)
        settings = self.resolved.settings
        split = stratified_split(
            self.images.labels, settings.guard_fraction, np.random.default_rng(settings.seed), cap=GUARD_CAP
        )
        self.learning, self.guard = (self.images.subset(part) for part in split)
        self.gate = Gate(settings, intensities(self.learning))
        self._identity = identify(self.resolved, self.pack.digest, self.images, self.test, self.engine.name)
        if resume and (finished := finished_run(self.out, self._identity)) is not None:
            return finished
        progress = unfinished_run(self.out, self._identity, resume=resume) or start_progress(
            self._original(), len(self.learning), len(self.images.classes), self.gate.start()
        )
        self.emit = files.EventLog(self.out / "events.jsonl", self.clock, self.listener)
        self.saved_s = self.clock()
        self._throttled_before = self.throttling()
        self.ledger = Ledger(self.recorder, progress)
        self.governor = self._make_governor(progress)
        if resume and not progress.before and list_checkpoints(self.out / "checkpoints"):
            self.emit("checkpoints_damaged")
        self.emit("resumed" if progress.before else "started", images=len(self.learning), guard=len(self.guard))
        try:
            if not progress.before:
                self._look_first(progress)
            if reason := self.governor.at_boundary(None):
                raise Stopped(reason, progress.latest_weights())
            Climb(self, progress).run()
        except Stopped as stop:
            self.emit("stopped", reason=stop.reason)
            if stop.weights is None:
                return self._summary(progress, stop.reason, None, shipped=False)
            summary = self._finish(progress, stop.weights, stop.reason)
            self.save(progress)  # once more, for the joules that the end took
            return summary
        return self._finish(progress, progress.weights, "done")

    # Start and finish

    def _look_first(self, progress: Progress) -> None:
        """Where the model stands before anything is changed, and what looking and writing take."""
        progress.before = self._evaluate_both(progress.weights)
        progress.best_guard = progress.before["guard"]
        self.emit("evaluated", accuracy=result.accuracy_block(progress.before, None))
        spent, _ = self.ledger.end_epoch()
        write_s = spent.seconds / WRITES  # a guess, for a run that is given limits only when it is resumed
        if self.limits:
            files.import_onnx()
            began_s = self.clock()
            self.save(progress)
            write_s = self.clock() - began_s
        guard, looks = len(self.guard), len(self.guard) + len(self.test or ())
        # Once for the verdict, once for the epoch that may just be ending.
        seconds = 1.1 * spent.seconds * (1 + guard / looks) + WRITES * write_s
        watts = None if spent.total_j is None or spent.seconds <= 0 else spent.total_j / spent.seconds
        self.governor.expect({"closing_s": seconds, "closing_j": None if watts is None else watts * seconds})

    def _make_governor(self, progress: Progress) -> Governor:
        sense = make_sense(self.clock, self.ledger.spent_j, self.recorder.max_temperature_c, self.supply, self.minute)
        governor = Governor(
            self.limits,
            sense,
            sleep=self._wait,
            emit=self.emit,
            interrupted=lambda: self.should_stop() is not None,
            idle=partial(self.recorder.phase, "idle"),
        )
        governor.expect(progress.outlook)
        return governor

    def _wait(self, seconds: float) -> None:
        self.sleep(seconds)
        self.listener({"event": "waiting"})

    def _original(self) -> Arrays:
        """The pack's weights, with room for the device's own classes."""
        return extend_head(self.pack.weights(), self.pack.manifest.model.head, len(self.images.classes))

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""
        self.ledger.note(progress)
        progress.outlook = self.governor.expected()
        with self.recorder.phase("checkpoint"):
            tensors, scalars = to_tensors(progress)
            path = save_checkpoint(self.out / "checkpoints", tensors, scalars, self._identity)
        self.emit("checkpoint", file=path.name)
        self.saved_s = self.clock()
        self.governor.skip()

    def _finish(self, progress: Progress, trained: Arrays, stopped: str) -> dict[str, Any]:
        """The guard's verdict, then the files; the original weights ship when training did not beat them."""
        known = progress.best_guard if trained is progress.weights else None
        guard = known or self.evaluate(trained, self.guard).to_json(self.images.classes)
        if known is None and not guard["loss"] < progress.best_guard["loss"]:  # stopped inside a rung that did no good
            trained, guard = progress.weights, progress.best_guard
        after = self._evaluate_both(trained, guard)
        before_guard, after_guard = progress.before["guard"], after["guard"]
        better = (after_guard["accuracy"], -after_guard["loss"]) > (before_guard["accuracy"], -before_guard["loss"])
        shipped = better and math.isfinite(after_guard["loss"])
        self.emit("guard", before=before_guard["accuracy"], after=after_guard["accuracy"], shipped=shipped)
        weights = trained if shipped else self._original()
        trim()
        with self.recorder.phase("checkpoint"):
            files.write_weights(self.out / "weights.safetensors", weights, self.images.classes)
            files.write_model(self.out / "model.onnx", self.pack, weights, self.images.classes)
            predict = self.engine.predictor(self.pack, weights)
            files.verify_model(self.out / "model.onnx", predict, self.pack.manifest.model)
        if "test" in after and progress.history and stopped == "done":
            kept = progress.best_guard.get("epoch")
            if kept:
                progress.history[kept - 1]["test_full"] = after["test"]["accuracy"]
            files.write_history(self.out / "history.csv", progress.history, self.images.classes)
        summary = self._summary(progress, stopped, after, shipped=shipped)
        write_json(self.out / "run.json", summary)
        self.emit("finished", shipped=shipped)
        return summary

    def _summary(
        self, progress: Progress, stopped: str, after: Mapping[str, Any] | None, *, shipped: bool
    ) -> dict[str, Any]:
        figure = self.ledger.end_run(progress)
        content = finite(
            {
                "schema": result.SCHEMA,
                "run": str(self.out),
                "pack": str(self.pack.path),
                "source": self.source,
                "engine": self.engine.name,
                "plan": self.resolved.settings.plan,
                "accuracy": result.accuracy_block(progress.before, after),
                "shipped": shipped,
                "energy": result.energy_block(progress, figure, self.recorder.cost().to_json()),
                "time_s": progress.run_spent.seconds,
                "epochs": progress.history,
                "decisions": progress.decisions,
                "before": progress.before,
                "after": after,
                "classes": self.images.classes,
                "images": {
                    "train": len(self.learning),
                    "guard": len(self.guard),
                    "test": len(self.test or ()),
                },
                "skipped_images": [{"path": s.path, "reason": s.reason} for s in self.images.skipped],
                "settings": self.resolved.to_json(),
                "identity": self._identity,
                "throttled": [
                    *new_throttling(self._throttled_before, self.throttling()),
                    *(f"{figure.meter}: {reason}" for reason in figure.throttled),
                ],
                "stopped": stopped,
            }
        )
        return dict(content)

    def evaluate(self, weights: Arrays, images: ImageSet) -> Evaluation:
        """The model with these weights on these images; may rest in between."""
        with self.recorder.phase("evaluate"):
            trim()  # its session comes on top of the trainer's
            predict = self.engine.predictor(self.pack, weights)
            return evaluate(predict, images, self.pack.manifest.model, self.governor.breathe)

    def _evaluate_both(self, weights: Arrays, guard: dict[str, Any] | None = None) -> dict[str, Any]:
        """Guard and, if there are test images, test figures; ``guard`` where those are known already."""
        figures = {"guard": guard or self.evaluate(weights, self.guard).to_json(self.images.classes)}
        if self.test is not None:
            figures["test"] = self.evaluate(weights, self.test).to_json(self.images.classes)
        return figures
