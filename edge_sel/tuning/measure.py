"""Measure what a sample of a training step costs with other threads, spinning and batch sizes, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from edge_sel.engines.base import Batch, Engine, Hyper, Trainer
from edge_sel.pack.reader import Pack
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.tuning.choose import REACH, Candidate, Cost

ROUNDS = 3
HOPELESS = 1.5
"""A candidate that costs so many times what the best one costs is not measured again."""
WARM_UP_STEPS = 2
"""The first steps of a session allocate its memory."""


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
    """Images, or features behind a frozen prefix, that show nothing: what a step takes does not depend on them."""
    rng = np.random.default_rng(0)
    model = pack.manifest.model
    prefix = pack.prefix(plan)
    shape = (3, *model.image_size) if prefix is None else prefix.shape
    images = rng.standard_normal((size, *shape)).astype(np.float32)
    return Batch(images, rng.integers(0, len(model.classes), size), np.ones(size, np.float32))
