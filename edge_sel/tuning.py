"""Which threads, spinning and batch size take the fewest joules: measured, chosen, and the file that remembers why.

``edge-sel tune`` writes one file per pack and engine. A file from another machine, or a damaged one, is not used.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge_sel.config.settings import Resolved
from edge_sel.engines.base import Batch, Engine, Hyper, Trainer
from edge_sel.files import cache_folder, cannot_write, read_regular, write_durably
from edge_sel.pack.reader import Pack
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.runs.lock import hold_lock
from edge_sel.schema import parse_json
from edge_sel.sysfs import board_model, processor_model, sysfs_root

SCHEMA = 1
LARGEST = 1 << 26
"""Bytes of a file that is read at all."""
TIE = 0.05
"""Candidates whose costs differ by less cost the same: short measurements tell no more."""
REACH = 2
"""How many times larger or smaller a batch may become: accuracy hardly changes so far, and the learning rate suits."""


ROUNDS = 3
HOPELESS = 1.5
"""A candidate that costs so many times what the best one costs is not measured again."""
WARM_UP_STEPS = 2
"""The first steps of a session allocate its memory."""


class Candidate(NamedTuple):
    """Settings that change what a sample costs and hardly what is learned from it."""

    threads: int
    spinning: bool
    batch_size: int


class Cost(NamedTuple):
    """Of one sample of a training step: gross joules (None where no meter works), seconds, processor seconds.

    Medians over ``rounds``; who has fewer of them than others was given up as hopeless.
    """

    energy_j: float | None
    time_s: float
    cpu_s: float
    rounds: int


Costs = Mapping[str, Mapping[Candidate, Cost]]
"""Plan → what its candidates cost."""


def candidates(cores: int, batch_size: int) -> list[Candidate]:
    """Powers of two up to all cores, and all of them; spinning where threads could wait for one another."""
    counts = sorted({*(2**i for i in range(cores.bit_length()) if 2**i <= cores), cores})
    sizes = sorted({max(1, batch_size // REACH), batch_size, batch_size * REACH})
    waiting = [(threads, spinning) for threads in counts for spinning in ((False, True) if threads > 1 else (False,))]
    return [Candidate(threads, spinning, size) for threads, spinning in waiting for size in sizes]


@dataclass
class Bench:
    """What measuring needs, passed in.

    Args:
        pack: whose plans.
        make_engine: from threads and spinning.
        recorder: a started one; it gives the joules and the seconds.
        window_s: of one candidate in one round; at least the meter's shortest.
        clock: seconds, the recorder's.
        cpu_time: processor seconds of this process.
        memory: bytes that this process has, and that are still to be had.
        tell: is told what has been measured.
    """

    pack: Pack
    make_engine: Callable[[int, bool], Engine]
    recorder: EnergyRecorder
    window_s: float
    clock: Callable[[], float]
    cpu_time: Callable[[], float]
    memory: Callable[[], tuple[int, int]]
    tell: Callable[[str], None] = lambda line: None

    def measure(self, plan: str, tried: Sequence[Candidate]) -> dict[Candidate, Cost]:
        """The median cost of each candidate; one whose batch does not fit into memory is left out."""
        rounds: dict[Candidate, list[Cost]] = {}
        alive = list(tried)
        for number in range(ROUNDS):
            groups = [list(group) for _, group in groupby(alive, key=lambda c: c[:2])]
            # There and back: a device that warms up, or a neighbour who comes and goes, is unfair to each in turn.
            for group in groups if number % 2 == 0 else reversed(groups):
                for candidate, cost in self._round(plan, group):
                    rounds.setdefault(candidate, []).append(cost)
            alive = [c for c in alive if len(rounds.get(c, ())) > number]
            medians = {candidate: median(costs) for candidate, costs in rounds.items()}
            best = min((weight(medians[c]) for c in alive), default=0.0)
            alive = [c for c in alive if weight(medians[c]) <= HOPELESS * best]
            self.tell(f"{plan}: round {number + 1} of {ROUNDS}, {len(alive)} of {len(tried)} candidates left")
        return medians

    def _round(self, plan: str, group: Sequence[Candidate]) -> Iterator[tuple[Candidate, Cost]]:
        """One window for each of the group's batch sizes, which share an engine, smallest first."""
        trainer = self.make_engine(*group[0][:2]).trainer(self.pack, plan, self.pack.weights())
        before_bytes, _ = self.memory()
        per_image_bytes = 0.0
        for candidate in group:
            taken_bytes, free_bytes = self.memory()
            if per_image_bytes * candidate.batch_size - (taken_bytes - before_bytes) > free_bytes / 2:
                return
            batch = noise(self.pack, plan, candidate.batch_size)
            for _ in range(WARM_UP_STEPS):
                trainer.step(batch, Hyper(0.0))
            per_image_bytes = max(0, self.memory()[0] - before_bytes) / candidate.batch_size
            yield candidate, self._window(trainer, batch)

    def _window(self, trainer: Trainer, batch: Batch) -> Cost:
        window = self.recorder.start_window("tune")
        began_s, began_cpu_s, steps = self.clock(), self.cpu_time(), 0
        while not steps or self.clock() - began_s < self.window_s:
            trainer.step(batch, Hyper(0.0))  # a step of size 0 computes the same and can go on for ever
            steps += 1
        figure, cpu_s = self.recorder.end_window(window), self.cpu_time() - began_cpu_s
        energy_j = figure.total_j
        if figure.source == "modelled" and figure.net_j is not None and figure.idle_w is not None:
            energy_j = figure.idle_w * figure.seconds + figure.net_j  # without what other processes did meanwhile
        samples = steps * len(batch.labels)
        return Cost(None if energy_j is None else energy_j / samples, figure.seconds / samples, cpu_s / samples, 1)


def weight(cost: Cost) -> float:
    """What candidates are compared by."""
    return cost.cpu_s if cost.energy_j is None else cost.energy_j


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure; the joules are unknown if one of them is."""
    known = [cost.energy_j for cost in costs if cost.energy_j is not None]
    return Cost(
        statistics.median(known) if len(known) == len(costs) else None,
        statistics.median(cost.time_s for cost in costs),
        statistics.median(cost.cpu_s for cost in costs),
        len(costs),
    )


def noise(pack: Pack, plan: str, size: int) -> Batch:
    """Images, or features behind a frozen backbone, that show nothing: what a step takes does not depend on them."""
    rng = np.random.default_rng(0)
    model = pack.manifest.model
    backbone = pack.backbone(plan)
    shape = (3, *model.image_size) if backbone is None else backbone.shape
    images = rng.standard_normal((size, *shape)).astype(np.float32)
    return Batch(images, rng.integers(0, len(model.classes), size), np.ones(size, np.float32))


def total_costs(costs: Costs, plans: Collection[str] | None = None) -> dict[Candidate, float]:
    """The sum over the plans (None: all that were measured) for every candidate that was measured with each of them.

    One that was given up keeps what it cost until then: hopeless with a cheap plan, it may be the best with a dear one.
    In joules; in processor seconds if the joules of any are not known.
    """
    chosen = [costs[plan] for plan in costs if plans is None or plan in plans]
    shared = [c for c in (chosen[0] if chosen else ()) if all(c in of_plan for of_plan in chosen)]
    joules = all(of_plan[c].energy_j is not None for of_plan in chosen for c in shared)
    return {c: sum((of_plan[c].energy_j or 0.0) if joules else of_plan[c].cpu_s for of_plan in chosen) for c in shared}


def choose(totals: Mapping[Candidate, float], batch_size: int, given: Mapping[str, Any]) -> Candidate | None:
    """The cheapest candidate; of those that cost the same the plainest: fewest threads, no spinning, nearest batch.

    Args:
        totals: candidate → cost.
        batch_size: of the run, if it is not tuned.
        given: what the user decided, among ``threads``, ``spinning`` and ``batch_size``; it is not chosen against.
    """

    def away(size: int) -> float:
        return abs(math.log2(size / batch_size))

    reach = math.log2(REACH)
    if "batch_size" in given:  # that size may not have been tried: the nearest one tells which threads suit it
        reach = min((away(c.batch_size) for c in totals), default=0.0)
    fixed = {key: value for key, value in given.items() if key != "batch_size"}
    able = [
        c for c in totals if away(c.batch_size) <= reach and all(getattr(c, k) == value for k, value in fixed.items())
    ]
    if not able:
        return None
    enough = min(totals[c] for c in able) * (1 + TIE)
    tied = [c for c in able if totals[c] <= enough]
    return min(tied, key=lambda c: (c.threads, c.spinning, away(c.batch_size), totals[c]))


def tuned_settings(resolved: Resolved, costs: Costs, plan: str) -> dict[str, Any]:
    """The settings that measurement decides in a run: those that the user left to the default or the profile.

    Args:
        resolved: the settings without tuning.
        costs: what was measured.
        plan: of the run, as in the settings; of ``auto`` all plans count.
    """
    given = {
        key: getattr(resolved.settings, key)
        for key in Candidate._fields
        if not resolved.origins[key].startswith(("default", "profile:"))
    }
    totals = total_costs(costs, None if plan == "auto" else [name.strip() for name in plan.split(",")])
    found = choose(totals, resolved.settings.batch_size, given)
    return {} if found is None else {key: value for key, value in found._asdict().items() if key not in given}


def machine(profile: str, cores: int, root: Path = Path("/")) -> dict[str, Any]:
    """What the figures hold for: processor, cores that may be used, ONNX Runtime and profile.

    ``root`` stands in for ``/`` in tests.
    """
    from edge_sel.engines.native import ort

    model = processor_model(root) or board_model(sysfs_root(root=root), root)
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": cores,
        "onnxruntime": ort.__version__,
        "profile": profile,
    }


def tuning_file(pack: str, engine: str, environ: Mapping[str, str]) -> Path | None:
    """Where the figures of a pack (its digest) are kept: ``$XDG_CACHE_HOME`` or ``~/.cache``; None without a home."""
    folder = cache_folder(environ, "tuning")
    return None if folder is None else folder / f"{pack}-{engine}.json"


def write_tuning(path: Path, costs: Costs, here: Mapping[str, Any], meter: Mapping[str, Any]) -> None:
    """Remember what was measured, beside what the same meter has told of other plans on this machine.

    Raises:
        SetupError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):  # another tune may be adding its plans
            known, _ = read_tuning(path, here, meter)
            plans = {
                plan: [{**candidate._asdict(), **cost._asdict()} for candidate, cost in measured.items()]
                for plan, measured in {**(known or {}), **costs}.items()
            }
            body = {"schema": SCHEMA, "machine": dict(here), "meter": dict(meter), "plans": plans}
            write_durably(path, (json.dumps(body, indent=1) + "\n").encode())
    except OSError as error:
        raise cannot_write(path, error) from error


def read_tuning(
    path: Path, here: Mapping[str, Any], meter: Mapping[str, Any] | None = None
) -> tuple[Costs | None, str | None]:
    """What is remembered; None where there is nothing of use, and a line that says why if there is a file.

    With ``meter``, only figures of that one are of use.
    """
    try:
        body = parse_json(read_regular(path, LARGEST))
        if body["schema"] != SCHEMA:
            return None, f"another edge-sel wrote it (schema {body['schema']!r}): {path}"
        found = {key: body["machine"].get(key) for key in here}
        different = [f"{key} {found[key]}, here {value}" for key, value in here.items() if found[key] != value]
        if different:
            return None, f"it was measured elsewhere ({'; '.join(different)}): {path}"
        if meter is not None and body["meter"] != meter:
            return None, f"another meter measured it: {path}"
        return {plan: dict(map(_entry, entries)) for plan, entries in body["plans"].items()}, None
    except (FileNotFoundError, PermissionError):  # a service may not even look into a home
        return None, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"it cannot be read ({type(error).__name__}: {error}): {path}"


def _entry(entry: Mapping[str, Any]) -> tuple[Candidate, Cost]:
    """One candidate of a file.

    Raises:
        ValueError: a value is not what ``write_tuning`` writes.
        KeyError: one is missing.
    """
    candidate = Candidate(*(entry[key] for key in Candidate._fields))
    cost = Cost(*(entry[key] for key in Cost._fields))
    counts = (candidate.threads, candidate.batch_size, cost.rounds)
    if type(candidate.spinning) is not bool or not all(type(count) is int and count > 0 for count in counts):
        raise ValueError(f"not a candidate: {candidate}")
    numbers = (cost.time_s, cost.cpu_s, 0.0 if cost.energy_j is None else cost.energy_j)
    if not all(type(value) in (int, float) and 0 <= value < math.inf for value in numbers):
        raise ValueError(f"not a cost: {cost}")
    return candidate, cost
