"""Short sessions on the built-in digits, with one thread, a clock that counts its calls and no meter."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sel.config.settings import Resolved, resolve
from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.data.shifts import apply_shift
from edge_sel.data.split import as_places
from edge_sel.edge.build import build_session
from edge_sel.edge.host import Host
from edge_sel.edge.limits import Limit
from edge_sel.edge.open import RunInputs
from edge_sel.edge.session import Session
from edge_sel.edge.train.schedule import fixed_schedule
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.anchors import ANCHORS
from edge_sel.pack.reader import Pack, builtin_pack
from edge_sel.pack.weights import Expert
from edge_sel.power.recorder import EnergyRecorder
from tests.once import loaded_once

DEFAULTS = {
    "plan": "bn,last-c25", "epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "target_rate": 0.5, "gate": "sundew",
    "significance": "v1", "curriculum": "cumulative", "validation_fraction": 0.15, "threads": 1, "checkpoint_every_s": 1e9,
    "backbone_precision": "fp32", "keep_duplicates": True,
}  # fmt: skip
"""Given in full, so that a change of edge-sel's own defaults changes no test."""

some_or_all = pytest.mark.parametrize(
    "apart", [11, pytest.param(1, marks=pytest.mark.slow)], ids=["every eleventh", "every one"]
)
"""Step boundaries at which a run is interrupted: one of eleven by default, all when there is time."""
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


class LoadsOnce(OrtEngine):
    """Keeps what onnxruntime has loaded for the next session: loading took a third of a short run."""

    session = loaded_once(OrtEngine.session)


@cache
def pack() -> Pack:
    return builtin_pack()


def without_anchors() -> Pack:
    """The same pack as an older version wrote it."""
    known = pack()
    return Pack(known.path, known.manifest, {name: held for name, held in known._content.items() if name != ANCHORS})


@cache
def digits(count: int = 120, part: str = "field") -> ImageSet:
    """So many, a sixth of which will judge: two of each class, of 120."""
    images = apply_shift("field_camera", load_digits(part), seed=0)
    if count >= len(images):
        return images
    judges = as_places(images.content_digests()[:, 0]) < DEFAULTS["validation_fraction"]
    of_class = [np.cumsum((images.labels == label) & judges) for label in range(len(images.classes))]
    rank = np.choose(images.labels, of_class)  # of a judge among those of its class
    first = np.flatnonzero(judges)[np.argsort(rank[judges], kind="stable")][: count // 6]
    return images.subset(np.sort(np.concatenate([first, np.flatnonzero(~judges)[: count - len(first)]])))


def of_counts(*counts: int) -> ImageSet:
    """So many digits 0, 1, 2 …, of each at least one to learn from and one that will judge."""
    images, share = digits(500), DEFAULTS["validation_fraction"]
    judges, chosen = as_places(images.content_digests()[:, 0]) < share, []
    for label, count in enumerate(counts):
        held = min(max(round(share * count), 1), count - 1) if count > 1 else 0
        members = images.labels == label
        chosen += [np.flatnonzero(members & judges)[:held], np.flatnonzero(members & ~judges)[: count - held]]
    return images.subset(np.sort(np.concatenate(chosen)))


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
    expert: Expert | None = None,
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
    given = RunInputs(
        base, images, engine or LoadsOnce(threads=1), settings, recorder or no_meter(), out, test=test,
        schedule=None if auto else fixed_schedule(base, named, epochs),
        host=replace(host or Host(clock=Ticks()), should_stop=should_stop, listener=listener), limits=limits,
        expert=expert, resume=resume,
    )  # fmt: skip
    return build_session(given)


def outcome(out: Path) -> dict[str, Any]:
    """What must not depend on interruptions: weights, model, decisions, and the history without time and energy."""
    run = json.loads((out / "run.json").read_text())
    return {
        "weights": (out / "weights.safetensors").read_bytes(),
        "model": (out / "model.onnx").read_bytes(),
        "epochs": [{k: v for k, v in epoch.items() if k not in CHANGES_WITH_TIME} for epoch in run["epochs"]],
        "history": [{k: v for k, v in row.items() if k not in CHANGES_WITH_TIME} for row in history(out)],
        "decisions": [_without_joules(decision) for decision in run["decisions"]],
        "accuracy": run["accuracy"],
        "shipped": run["shipped"],
    }


def _without_joules(decision: dict[str, Any]) -> dict[str, Any]:
    gains = {key: decision[key]["gain"] for key in ("expected", "came") if key in decision}
    return {**decision, **gains, "why": ""}  # the reasons tell of joules


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


def damage(path: Path, at: int) -> None:
    """Flip a bit of the byte at this place."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
