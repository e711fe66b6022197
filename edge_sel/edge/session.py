"""A fine-tuning session: split, evaluate, climb the rungs, guard, write. docs/session.md lists the files it leaves."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel import __version__
from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import require_trainable
from edge_sel.data.split import stratified_split
from edge_sel.data.transforms import intensity_std
from edge_sel.edge import outputs, result
from edge_sel.edge.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from edge_sel.edge.evaluate import Evaluation, evaluate
from edge_sel.edge.gate import Gate
from edge_sel.edge.head import extend_head
from edge_sel.edge.ledger import Ledger
from edge_sel.edge.progress import Arrays, Progress, from_tensors, start_progress, to_tensors
from edge_sel.edge.rung import RungContext, RungRunner, Stopped
from edge_sel.edge.rungs import Ladder
from edge_sel.engines.base import Engine
from edge_sel.errors import UsageError
from edge_sel.pack.reader import Pack
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.settings import Resolved

GUARD_CAP = 500
"""Most images in the guard set: beyond this an evaluation costs more than its precision is worth."""

_MAY_CHANGE_ON_RESUME = {"checkpoint_every_s", "meter", "require_measured"}


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
        wall_clock: Unix seconds, for the event of the first gradient step.
        source: what ``images`` are, for the report.
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
    wall_clock: Callable[[], float] = time.time
    source: str = ""
    _saved_s: float = field(default=0.0, init=False)
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
        self._train, self._guard = (self.images.subset(part) for part in split)
        self._gate = Gate(settings, _intensities(self._train))
        self._identity = self._identify()
        if resume and (self.out / "run.json").exists():
            return self._finished()
        progress = self._start(resume)
        self._emit = outputs.EventLog(self.out / "events.jsonl", self.clock, self.listener)
        self._saved_s = self.clock()
        self._ledger = Ledger(self.recorder, progress)
        if resume and not progress.before and list_checkpoints(self.out / "checkpoints"):
            self._emit("checkpoints_damaged")
        self._emit("resumed" if progress.before else "started", images=len(self._train), guard=len(self._guard))
        try:
            self._climb(progress)
        except Stopped as stop:
            self._emit("stopped", reason=stop.reason)
            return self._summary(progress, stop.reason, None, shipped=False)
        return self._finish(progress)

    # The rungs

    def _climb(self, progress: Progress) -> None:
        if not progress.before:
            progress.before = self._evaluate_both(progress.weights)
            self._emit("evaluated", accuracy=result.accuracy_block(progress.before, None))
            self._ledger.end_epoch()
        context = RungContext(
            pack=self.pack,
            engine=self.engine,
            images=self._train,
            gate=self._gate,
            settings=self.resolved.settings,
            at_boundary=self._at_boundary,
            end_epoch=self._end_epoch,
        )
        while (rung := self.ladder.next(progress.history, progress.rung)) is not None:
            self._emit("rung", plan=rung.plan, epochs=rung.epochs)
            RungRunner(context, rung, progress).run()

    def _at_boundary(self, progress: Progress, trainer_state: Callable[[], Arrays]) -> None:
        self.listener({"event": "step", "plan_epoch": progress.epoch, "cursor": progress.cursor, "step": progress.step})
        if not self._stepped and progress.tally.computed:
            self._stepped = True
            self._emit("first_step", unix_s=self.wall_clock())
        reason = self.should_stop()
        now_s = self.clock()
        if reason or now_s - self._saved_s >= self.resolved.settings.checkpoint_every_s:
            progress.trainer = trainer_state()
            self._save(progress)
            self._saved_s = now_s
        if reason:
            raise Stopped(reason)

    def _end_epoch(self, progress: Progress, figures: Mapping[str, Any], weights: Callable[[], Arrays]) -> None:
        guard = self._evaluate(weights(), self._guard)
        spent, figure = self._ledger.end_epoch()
        entry = result.epoch_entry(progress, figures, guard, spent, figure, self.images.classes)
        progress.history.append(outputs.finite(entry))
        outputs.write_history(self.out / "history.csv", progress.history, self.images.classes)
        self._emit("epoch", **{key: value for key, value in entry.items() if key != "classes"})

    # Start and finish

    def _identify(self) -> dict[str, Any]:
        """What the run is a run of; each value survives JSON."""
        values = {key: entry["value"] for key, entry in self.resolved.to_json().items()}
        return {
            "edge_sel": __version__,
            "pack": self.pack.digest,
            "images": self.images.fingerprint(),
            "test images": None if self.test is None else self.test.fingerprint(),
            "engine": self.engine.name,
            **{key: value for key, value in values.items() if key not in {*_MAY_CHANGE_ON_RESUME, "engine"}},
        }

    def _finished(self) -> dict[str, Any]:
        """The result of the run that ended here earlier, if it is this one."""
        path = self.out / "run.json"
        try:
            finished: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            identity = finished["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError("not the result of a run of edge-sel", where=path, fix="another --out") from error
        self._require_same(identity, self.out)
        return finished

    def _require_same(self, identity: Mapping[str, Any], where: Path) -> None:
        different = [key for key, value in self._identity.items() if identity.get(key) != value]
        if different:
            raise UsageError(
                f"cannot resume, these are not what the run began with: {', '.join(different)}", where=where,
                fix="give the same options and images, or another --out",
            )  # fmt: skip

    def _start(self, resume: bool) -> Progress:
        folder = self.out / "checkpoints"
        used = any((self.out / name).exists() for name in outputs.FILES) or list_checkpoints(folder)
        if used and not resume:
            raise UsageError("the folder holds a run already", where=self.out, fix="--resume, or another --out")
        loaded = load_checkpoint(folder) if resume else None
        if loaded is None:
            return start_progress(self._original(), len(self._train), len(self.images.classes), self._gate.start())
        tensors, scalars, identity, path = loaded
        self._require_same(identity, path)
        return from_tensors(tensors, scalars)

    def _original(self) -> Arrays:
        """The pack's weights, with room for the device's own classes."""
        return extend_head(self.pack.weights(), self.pack.manifest.model.head, len(self.images.classes))

    def _save(self, progress: Progress) -> None:
        self._ledger.note(progress)
        tensors, scalars = to_tensors(progress)
        path = save_checkpoint(self.out / "checkpoints", tensors, scalars, self._identity)
        self._emit("checkpoint", file=path.name)

    def _finish(self, progress: Progress) -> dict[str, Any]:
        """The guard's verdict, then the files; the original weights ship when training did not beat them."""
        after = self._evaluate_both(progress.weights)
        before_guard, after_guard = progress.before["guard"], after["guard"]
        better = (after_guard["accuracy"], -after_guard["loss"]) > (before_guard["accuracy"], -before_guard["loss"])
        shipped = better and math.isfinite(after_guard["loss"])
        self._emit("guard", before=before_guard["accuracy"], after=after_guard["accuracy"], shipped=shipped)
        weights = progress.weights if shipped else self._original()
        outputs.write_weights(self.out / "weights.safetensors", weights, self.images.classes)
        outputs.write_model(self.out / "model.onnx", self.pack, weights, self.images.classes)
        predict = self.engine.predictor(self.pack, weights)
        outputs.verify_model(self.out / "model.onnx", predict, self.pack.manifest.model)
        if "test" in after and progress.history:
            progress.history[-1]["test_full"] = after["test"]["accuracy"]
            outputs.write_history(self.out / "history.csv", progress.history, self.images.classes)
        summary = self._summary(progress, "done", after, shipped=shipped)
        outputs.write_json(self.out / "run.json", summary)
        self._emit("finished", shipped=shipped)
        return summary

    def _summary(
        self, progress: Progress, stopped: str, after: Mapping[str, Any] | None, *, shipped: bool
    ) -> dict[str, Any]:
        figure = self._ledger.end_run(progress)
        content = outputs.finite(
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
                "before": progress.before,
                "after": after,
                "classes": self.images.classes,
                "images": {"train": len(self._train), "guard": len(self._guard), "test": len(self.test or ())},
                "skipped_images": [{"path": s.path, "reason": s.reason} for s in self.images.skipped],
                "settings": self.resolved.to_json(),
                "identity": self._identity,
                "stopped": stopped,
            }
        )
        return dict(content)

    def _evaluate(self, weights: Arrays, images: ImageSet) -> Evaluation:
        return evaluate(self.engine.predictor(self.pack, weights), images, self.pack.manifest.model)

    def _evaluate_both(self, weights: Arrays) -> dict[str, Any]:
        """Guard and, if there are test images, test figures."""
        figures = {"guard": self._evaluate(weights, self._guard).to_json(self.images.classes)}
        if self.test is not None:
            figures["test"] = self._evaluate(weights, self.test).to_json(self.images.classes)
        return figures


def _intensities(images: ImageSet) -> np.ndarray:
    chunks = np.array_split(np.arange(len(images)), max(1, len(images) // 256))
    return np.concatenate([intensity_std(images.read(chunk)) for chunk in chunks])
