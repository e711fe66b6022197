"""Short sessions on the built-in digits, with one thread, a clock that counts its calls and no meter."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.config.settings import Resolved, resolve
from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.data.shifts import apply_shift
from edge_sel.edge.build import build_session
from edge_sel.edge.governor.decision import Limit
from edge_sel.edge.host import Host
from edge_sel.edge.session import Session
from edge_sel.edge.train.ladder import LadderConfig, auto_ladder, fixed_ladder
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.builtin import builtin_pack
from edge_sel.pack.reader import Pack
from edge_sel.power import EnergyRecorder, MeterError, Reading, Source
from edge_sel.power.battery import Supply

DEFAULTS = {
    "plan": "bn,last-c25", "epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "target_rate": 0.5, "gate": "sundew",
    "significance": "v1", "curriculum": "cumulative", "guard_fraction": 0.15, "threads": 1, "checkpoint_every_s": 1e9,
    "prefix_precision": "fp32",
}  # fmt: skip
"""Given in full, so that a change of edge-sel's own defaults changes no test."""

CHANGES_WITH_TIME = {
    "time_s", "energy_j", "net_j", "energy_source", "meter", "power_w", "uncertainty_j", "phases", "temp_c",
}  # fmt: skip


class Ticks:
    """A clock: every look at it is one second later."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


class Killed(BaseException):
    """Stands in for SIGKILL: nothing in the session may catch it."""


class StopAt:
    """``should_stop`` that stops politely at the given step boundary, counted from 1."""

    def __init__(self, boundary: int) -> None:
        self.left = boundary

    def __call__(self) -> str | None:
        self.left -= 1
        return "signal" if self.left == 0 else None


class KillAt:
    """A listener that kills the session at the given step boundary, before anything is saved there."""

    def __init__(self, boundary: int) -> None:
        self.left = boundary

    def __call__(self, event: dict[str, Any]) -> None:
        self.left -= event["event"] == "step"
        if self.left == 0:
            raise Killed


class Tape:
    """A listener that keeps every event."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


@cache
def pack() -> Pack:
    return builtin_pack()


@cache
def digits(count: int = 120, part: str = "field") -> ImageSet:
    return apply_shift("field_camera", load_digits(part), seed=0).subset(np.arange(count))


def of_counts(*counts: int) -> ImageSet:
    """So many digits 0, 1, 2 …"""
    images = digits(500)
    return images.subset(np.concatenate([np.flatnonzero(images.labels == c)[:n] for c, n in enumerate(counts)]))


def flipping(base: Pack) -> Pack:
    """The same pack for pictures that may be mirrored, so that training augments them."""
    model = replace(base.manifest.model, flip=True)
    return base.with_manifest(replace(base.manifest, model=model))


def resolved(**flags: Any) -> Resolved:
    return resolve(flags=DEFAULTS | flags)


def no_meter() -> EnergyRecorder:
    return EnergyRecorder(None, Ticks(), background=False, temperature=lambda: None)


def session(
    out: Path,
    *,
    images: ImageSet | None = None,
    test: ImageSet | None = None,
    base: Pack | None = None,
    engine: Any = None,
    recorder: EnergyRecorder | None = None,
    host: Host | None = None,
    limits: Sequence[Limit] = (),
    ladder: LadderConfig | None = None,
    resume: bool = False,
    should_stop: Callable[[], str | None] = lambda: None,
    listener: Callable[[dict[str, Any]], None] = lambda event: None,
    **flags: Any,
) -> Session:
    """A session with everything passed in; ``flags`` are settings."""
    settings, base = resolved(**flags), base or pack()
    images = digits() if images is None else images
    auto = settings.settings.plan == "auto"
    named, epochs = settings.settings.plan, settings.settings.epochs
    return build_session(
        base,
        images,
        test,
        engine or OrtEngine(threads=1),
        auto_ladder(base, len(images.classes), ladder) if auto else fixed_ladder(base, named, epochs),
        settings,
        recorder or no_meter(),
        out,
        host=replace(host or Host(clock=Ticks()), should_stop=should_stop, listener=listener),
        limits=limits,
        resume=resume,
    )


class World:
    """A small device: its time, joules and heat pass while its engine computes and while the session sleeps.

    It draws 10 W busy and 2 W idle, and warms to 125 °C and 45 °C by that, half of the way in 14 s.
    """

    name = "world"
    source: Source = "measured"
    min_window_s = 0.1

    def __init__(self) -> None:
        self.now_s, self.energy_j = 0.0, 0.0
        self.temp_c = self.hottest_c = 45.0
        self.trained = self.scored = 0
        self.supply = lambda: Supply(None, None)
        self.minute = lambda: 0
        self.lost_s = math.inf

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.spend(seconds, 2.0)

    def spend(self, seconds: float, power_w: float = 10.0) -> None:
        self.now_s += seconds
        self.energy_j += power_w * seconds
        steady_c = 25.0 + 10.0 * power_w
        self.temp_c = steady_c + (self.temp_c - steady_c) * math.exp(-seconds / 20.0)
        self.hottest_c = max(self.hottest_c, self.temp_c)

    def read(self, now_s: float) -> Reading:
        if self.now_s >= self.lost_s:
            raise MeterError("it is gone")
        return Reading(now_s, self.energy_j, None)

    def close(self) -> None:
        pass


class Labouring:
    """The default engine; what it computes takes the world's time: a forward pass 20 ms an image, a step 60 ms.

    Of both a frozen prefix takes the share that it has of the FLOPs.
    """

    name = "ort"

    def __init__(self, world: World) -> None:
        self._world, self._engine = world, OrtEngine(threads=1)

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Any:
        return _Labourer(self._world, self._engine.trainer(pack, plan, weights), 1 - prefix_share(pack, plan))

    def prefix(
        self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray], *, int8: tuple[float, float] | None = None
    ) -> Any:
        prefix = self._engine.prefix(pack, plan, weights, int8=int8)

        def laboured(images: np.ndarray) -> np.ndarray:
            self._world.spend(0.06 * prefix_share(pack, plan) * len(images))
            return prefix(images)

        return laboured if prefix else None

    def predictor(self, pack: Pack, weights: Mapping[str, np.ndarray]) -> Any:
        predict = self._engine.predictor(pack, weights)

        def laboured(images: np.ndarray) -> np.ndarray:
            self._world.spend(0.02 * len(images))
            return predict(images)

        return laboured


def prefix_share(pack: Pack, plan: str) -> float:
    """Of the FLOPs of a step on an image that is seen for the first time."""
    info = pack.prefix(plan)
    return info.flops / (info.flops + pack.plan(plan).flops_train) if info else 0.0


class _Labourer:
    def __init__(self, world: World, trainer: Any, share: float) -> None:
        self._world, self._trainer, self._share = world, trainer, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def score(self, images: np.ndarray, labels: np.ndarray) -> Any:
        self._world.scored += len(images)
        self._world.spend(0.02 * self._share * len(images))
        return self._trainer.score(images, labels)

    def step(self, batch: Any, hyper: Any) -> Any:
        self._world.trained += len(batch.labels)
        self._world.spend(0.06 * self._share * len(batch.labels))
        return self._trainer.step(batch, hyper)

    def guilt(self, batch: Any) -> Any:
        self._world.spend(0.06 * self._share * len(batch.labels))
        return self._trainer.guilt(batch)


def governed(out: Path, world: World, *limits: Limit, **given: Any) -> dict[str, Any]:
    """The result of a session in this world under these limits."""
    recorder = EnergyRecorder(world, world, background=False, temperature=lambda: world.temp_c, cpu_time=world)
    host = Host(clock=world, sleep=world.sleep, supply=world.supply, minute=world.minute)
    return session(out, engine=Labouring(world), recorder=recorder, host=host, limits=limits, **given).run()


def outcome(out: Path) -> dict[str, Any]:
    """What must not depend on interruptions: weights, model, decisions, and the history without time and energy."""
    run = json.loads((out / "run.json").read_text())
    return {
        "weights": (out / "weights.safetensors").read_bytes(),
        "model": (out / "model.onnx").read_bytes(),
        "epochs": [{k: v for k, v in epoch.items() if k not in CHANGES_WITH_TIME} for epoch in run["epochs"]],
        "history": [{k: v for k, v in row.items() if k not in CHANGES_WITH_TIME} for row in history(out)],
        "decisions": [{**decision, "why": ""} for decision in run["decisions"]],  # the reasons tell of joules
        "accuracy": run["accuracy"],
        "shipped": run["shipped"],
    }


def history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file with its content, every folder with None."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def full_disk(*_: Any, **__: Any) -> None:
    """Stands in for a function that writes."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
