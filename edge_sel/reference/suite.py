"""Systems x seeds, each epoch with its joules; what is done is not done again."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from edge_sel.errors import SetupError
from edge_sel.models.registry import build, parameter_count
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.reference import parallel
from edge_sel.reference.data import Sets, planned_size
from edge_sel.reference.epoch import make_row, summarise_run
from edge_sel.reference.images import DeviceImages, make_images
from edge_sel.reference.model import start_model
from edge_sel.reference.policies import build_policy
from edge_sel.reference.results import EpochRow, Result, RunFolder, read_finished
from edge_sel.reference.systems import Setup, SuiteOptions, System
from edge_sel.reference.trainer import SystemTrainer
from edge_sel.runs.checkpoint import Identity, require_same
from edge_sel.sel.guilt import nominal_flops
from edge_sel.sysfs import processor_model
from edge_sel.version import __version__

Event = dict[str, Any]


def plan(systems: Sequence[System], options: SuiteOptions) -> list[dict[str, Any]]:
    """What would run: epochs, model and nominal FLOPs where they are known before."""
    size = planned_size(options.data, options.scale)
    found = []
    for system in systems:
        setup = options.setup(system)
        policy = build_policy(system, setup)
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


class _Images(NamedTuple):
    """The images of one size, on the device."""

    train: DeviceImages
    test: DeviceImages
    sets: Sets


def run_suite(
    systems: Sequence[System],
    sets_of: Callable[[int], Sets],
    options: SuiteOptions,
    recorder: EnergyRecorder,
    *,
    should_stop: Callable[[], object] = lambda: None,
    listen: Callable[[Event], None] = lambda event: None,
) -> list[Result]:
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
    loaded: dict[int, _Images] = {}
    results = []
    for system in systems:
        setup = options.setup(system)
        if setup.image_size not in loaded:
            sets = sets_of(setup.image_size)
            loaded = {setup.image_size: _Images(*make_images(sets.train, sets.test, device), sets)}
        for seed in options.seeds:
            run = _Run(system, setup, seed, options, loaded[setup.image_size], recorder, listen)
            try:
                results.append(run.result(should_stop))
            except torch.OutOfMemoryError as error:
                what, fix = "the GPU's memory is full", "a smaller --model or --image-size, or --scale small"
                raise SetupError(what, where=system.name, fix=fix) from error
    return results


@dataclass(frozen=True)
class _Run:
    """One system with one seed."""

    system: System
    setup: Setup
    seed: int
    options: SuiteOptions
    images: _Images
    recorder: EnergyRecorder
    listen: Callable[[Event], None]

    def result(self, should_stop: Callable[[], object]) -> Result:
        """Of the finished run; trains to the end, from the last checkpoint if there is one."""
        folder = RunFolder(self.options.out, self.system.name, self.seed)
        identity = self._identity()
        found = read_finished(folder.path)
        if found is not None:
            require_same(found["identity"], identity, folder.path)
            self._tell("kept")
            return found
        train, test, _ = self.images
        torch.manual_seed(self.seed)
        model, weights = start_model(self.setup, len(train.classes), train.size, self.options.weights)
        policy = build_policy(self.system, self.setup)
        trainer = SystemTrainer(model, self.setup, policy, train, test, seed=self.seed, should_stop=should_stop)
        if trainer.device.type == "cuda" and not trainer.speed.compiled:
            self._tell("uncompiled", why=trainer.speed.why)
        rows = self._resume(trainer, folder, identity)
        compiling = self._compile(trainer)
        while len(rows) < policy.epochs(self.setup.epochs):
            rows.append(self._epoch(trainer, rows))
            if parallel.rank() == 0:
                with self.recorder.phase("checkpoint"):
                    folder.save(trainer.state(), rows, identity)
            self._tell("epoch", epochs=policy.epochs(self.setup.epochs), **rows[-1])
        result = self._report(trainer, weights, identity, rows) | compiling
        if parallel.rank() == 0:
            folder.finish(rows, result)
        self._tell("finished", **result["summary"])
        return result

    def _resume(self, trainer: SystemTrainer, folder: RunFolder, identity: Identity) -> list[EpochRow]:
        """The rows of the epochs that are done."""
        found = folder.load()
        if found is None:
            return []
        arrays, rows, theirs = found
        require_same(theirs, identity, folder.path)
        trainer.load(arrays)
        self._tell("resumed", epoch=len(rows))
        return rows

    def _compile(self, trainer: SystemTrainer) -> dict[str, Any]:
        """What compiling the steps took; none of it is in an epoch's figures. The same graphs are compiled once."""
        if not trainer.speed.compiled:
            return {}
        window = self.recorder.start_window(f"{self.system.name} compile")
        try:
            trainer.compile()
        finally:
            figure = self.recorder.end_window(window)
        found = {"seconds": figure.seconds, "energy_j": figure.total_j}
        self._tell("compiled", **found)
        return {"compile": found}

    def _epoch(self, trainer: SystemTrainer, rows: list[EpochRow]) -> EpochRow:
        window = self.recorder.start_window(f"{self.system.name} epoch {len(rows) + 1}")
        try:
            with self.recorder.phase("train"):
                result = trainer.train_epoch(len(rows) + 1)
        finally:  # a stopped epoch must not leave its window open
            figure = self.recorder.end_window(window)
        with self.recorder.phase("evaluate"):
            judged = trainer.evaluate()
        return make_row(rows, result, judged, figure, trainer.train.classes)

    def _report(self, trainer: SystemTrainer, weights: str, identity: Identity, rows: list[EpochRow]) -> Result:
        return {
            "schema": 1,
            "system": self.system.name,
            "seed": self.seed,
            "scale": self.options.scale.name,
            "label": self.system.label(self.setup, self.options.scale),
            "source": self.system.source,
            "data": self.images.sets.source,
            "data_name": self.options.data,
            "train_images": len(trainer.train),
            "test_images": len(trainer.test),
            "weights": weights,
            "parameters": trainer.parameters,
            "executed_flops_per_image": trainer.work._asdict(),
            "summary": summarise_run(rows),
            "setup": asdict(self.setup),
            "environment": environment(trainer.device) | trainer.speed.to_json(),
            "identity": identity,
            "rows": rows,
        }

    def _identity(self) -> Identity:
        return {
            "system": self.system.name,
            "seed": self.seed,
            "scale": self.options.scale.name,
            "setup": asdict(self.setup),
            "weights": self.options.weights,
            "train": self.images.sets.train.fingerprint(),
            "test": self.images.sets.test.fingerprint(),
            "processes": parallel.world(),
        }

    def _tell(self, event: str, **figures: Any) -> None:
        self.listen({"event": event, "system": self.system.name, "seed": self.seed, **figures})


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures depend on besides the settings."""
    found: dict[str, Any] = {
        "edge_sel": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor_model() or platform.processor(),
        "threads": torch.get_num_threads(),
        "processes": parallel.world(),
        "device": str(device),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if device.type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found
