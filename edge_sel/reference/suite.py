"""Systems x seeds, each epoch with its joules; what is done is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from edge_sel.errors import SetupError, UsageError
from edge_sel.models.registry import build, parameter_count
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.reference import parallel
from edge_sel.reference.data import Sets, planned_size
from edge_sel.reference.environment import environment
from edge_sel.reference.images import DeviceImages, make_images
from edge_sel.reference.record import Row, make_row, summarise
from edge_sel.reference.setup import Scale, Setup
from edge_sel.reference.store import RunFolder
from edge_sel.reference.systems import System
from edge_sel.reference.trainer import Stopped, Trainer
from edge_sel.reference.weights import Wanted, start_model
from edge_sel.sel.nominal_flops import nominal_flops

Event = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What a suite may be told."""

    scale: Scale
    data: str
    out: Path
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    weights: Wanted = "auto"
    model: str | None = None
    epochs: int | None = None
    image_size: int | None = None

    def setup(self, system: System) -> Setup:
        """What a system trains with under these options."""
        return system.at(self.scale, model=self.model, epochs=self.epochs, image_size=self.image_size)


def plan(systems: Sequence[System], options: Options) -> list[dict[str, Any]]:
    """What would run: epochs, model and nominal FLOPs where they are known before."""
    size = planned_size(options.data, options.scale)
    found = []
    for system in systems:
        setup = options.setup(system)
        policy = system.recipe(setup)
        parameters = _parameters(setup, size[1]) if size else None
        samples = policy.planned_samples(size[0], policy.epochs(setup.epochs)) if size else None
        sparsity = policy.planned_sparsity()
        flops = None
        if parameters is not None and samples is not None and sparsity is not None:
            flops = nominal_flops(parameters, samples, sparsity) / 1e12
        found.append(
            {
                "name": system.name,
                "text": system.text,
                "source": system.source,
                "epochs": policy.epochs(setup.epochs),
                "model": setup.model,
                "parameters": parameters,
                "batch_size": setup.batch_size,
                "nominal_flops_t": flops,
            }
        )
    return found


def _parameters(setup: Setup, classes: int) -> int | None:
    """Counted on a device without memory; None where the model's library is missing."""
    try:
        with torch.device("meta"):
            return parameter_count(build(setup.model, classes, (setup.image_size, setup.image_size)))
    except SetupError:
        return None


def run_suite(
    systems: Sequence[System],
    sets_of: Callable[[int], Sets],
    options: Options,
    recorder: EnergyRecorder,
    *,
    should_stop: Callable[[], object] = lambda: None,
    listen: Callable[[Event], None] = lambda event: None,
) -> list[dict[str, Any]]:
    """Run what is not finished in ``options.out``; the results of all that is.

    Args:
        systems: in order.
        sets_of: gives the data at an image size; asked once for each size.
        options: scale, seeds and so on.
        recorder: opened by the caller.
        should_stop: asked before every step; what is not finished then goes on at the next call.
        listen: is given an event after each epoch and run.

    Raises:
        UsageError: the folder holds other runs of the same systems.
        SetupError: the GPU's memory is full; finished epochs are kept.
        Stopped: it was asked to stop.
    """
    device = parallel.start(options.device)
    loaded: dict[int, tuple[DeviceImages, DeviceImages, Sets]] = {}
    results = []
    for system in systems:
        setup = options.setup(system)
        if setup.image_size not in loaded:
            sets = sets_of(setup.image_size)
            loaded = {setup.image_size: (*make_images(sets.train, sets.test, device), sets)}
        train, test, sets = loaded[setup.image_size]
        for seed in options.seeds:
            identity = _identity(system, setup, options, seed, sets)
            folder = RunFolder(options.out, system.name, seed)
            result = folder.finished()
            if result is None:
                run = _Run(system, setup, seed, options, folder, identity, recorder, listen)
                try:
                    result = run.go(train, test, sets, should_stop)
                except torch.OutOfMemoryError as error:
                    what, fix = "the GPU's memory is full", "a smaller --model or --image-size, or --scale small"
                    raise SetupError(what, where=system.name, fix=fix) from error
            else:
                _require_same(result["identity"], identity, folder.path)
                listen({"event": "kept", "system": system.name, "seed": seed})
            results.append(result)
    return results


class _Run:
    """One system with one seed."""

    def __init__(
        self, system: System, setup: Setup, seed: int, options: Options, folder: RunFolder, identity: dict[str, Any],
        recorder: EnergyRecorder, listen: Callable[[Event], None],
    ) -> None:  # fmt: skip
        self.system, self.setup, self.seed, self.options = system, setup, seed, options
        self.folder, self.identity, self.recorder, self.listen = folder, identity, recorder, listen

    def go(
        self, train: DeviceImages, test: DeviceImages, sets: Sets, should_stop: Callable[[], object]
    ) -> dict[str, Any]:
        """Train to the end, from the last checkpoint if there is one."""
        torch.manual_seed(self.seed)
        model, weights = start_model(self.setup, len(train.classes), train.size, self.options.weights)
        policy = self.system.recipe(self.setup)
        trainer = Trainer(model, self.setup, policy, train, test, seed=self.seed, should_stop=should_stop)
        rows: list[Row] = []
        if trainer.device.type == "cuda" and not trainer.speed.compiled:
            self._tell("uncompiled", why=trainer.speed.why)
        found = self.folder.load()
        if found is not None:
            tensors, rows, identity = found
            _require_same(identity, self.identity, self.folder.path)
            trainer.load(tensors)
            self._tell("resumed", epoch=len(rows))
        while len(rows) < policy.epochs(self.setup.epochs):
            rows.append(self._epoch(trainer, rows))
            self._save(trainer, rows)
            self._tell("epoch", epochs=policy.epochs(self.setup.epochs), **rows[-1])
        result = {
            "schema": 1,
            "system": self.system.name,
            "seed": self.seed,
            "scale": self.options.scale.name,
            "label": self.system.label(self.setup, self.options.scale),
            "source": self.system.source,
            "data": sets.source,
            "data_name": self.options.data,
            "train_images": len(train),
            "test_images": len(test),
            "weights": weights,
            "parameters": trainer.parameters,
            "executed_flops_per_image": trainer.work._asdict(),
            "summary": summarise(rows),
            "setup": asdict(self.setup),
            "environment": environment(trainer.device) | trainer.speed.to_json(),
            "identity": self.identity,
            "rows": rows,
        }
        if parallel.rank() == 0:
            self.folder.finish(rows, result)
        self._tell("finished", **result["summary"])
        return result

    def _tell(self, event: str, **figures: Any) -> None:
        self.listen({"event": event, "system": self.system.name, "seed": self.seed, **figures})

    def _epoch(self, trainer: Trainer, rows: list[Row]) -> Row:
        window = self.recorder.start_window(f"{self.system.name} epoch {len(rows) + 1}")
        try:
            with self.recorder.phase("train"):
                result = trainer.train_epoch(len(rows) + 1)
        finally:  # a stopped epoch must not leave its window open
            figure = self.recorder.end_window(window)
        with self.recorder.phase("evaluate"):
            judged = trainer.evaluate()
        return make_row(rows, result, judged, figure, trainer.train.classes)

    def _save(self, trainer: Trainer, rows: list[Row]) -> None:
        if parallel.rank() == 0:
            with self.recorder.phase("checkpoint"):
                self.folder.save(trainer.state(), rows, self.identity)


def _identity(system: System, setup: Setup, options: Options, seed: int, sets: Sets) -> dict[str, Any]:
    """What a run is a run of; a run with another identity is not continued."""
    return {
        "system": system.name,
        "seed": seed,
        "scale": options.scale.name,
        "setup": asdict(setup),
        "weights": options.weights,
        "train": sets.train.fingerprint(),
        "test": sets.test.fingerprint(),
        "processes": parallel.world(),
    }


def _require_same(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    different = [key for key, value in wanted.items() if found.get(key) != value]
    if different:
        what = f"a run with another {' and '.join(different)} is here"
        raise UsageError(what, where=path, fix="name another --out, or remove that folder")


__all__ = ["Event", "Options", "Stopped", "plan", "run_suite"]
