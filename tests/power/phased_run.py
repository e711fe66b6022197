"""A run in phases under a fake clock, and what holds for every figure of it."""

from __future__ import annotations

from typing import Any

import pytest
from power_fakes import Clock, FakeMeter, by_hand

from edge_sel.power.figure import EnergyFigure


class Run:
    """A recorder under a fake clock, and a process that uses processor time when told to."""

    def __init__(self, power_w: float = 10.0, *, idle_w: float | None = 4.0, **given: Any) -> None:
        self.clock, self.cpu_s = Clock(), 0.0
        self.meter = FakeMeter(self.clock, power_w if idle_w is None else idle_w, **given)
        self.recorder = by_hand(self.meter, self.clock, cpu_time=lambda: self.cpu_s)
        if idle_w is not None:
            self.recorder.measure_idle(1.0, sleep=self.clock.sleep)
        self.draw(power_w)
        self.window = self.recorder.start_window("run")

    def draw(self, power_w: float) -> None:
        """The power from now on; the meter has counted what was before."""
        self.recorder.sample_once()
        self.meter.power_w = power_w
        self.recorder.sample_once()

    def work(self, seconds: float, cpu_s: float = 0.0) -> None:
        self.clock.sleep(seconds)
        self.cpu_s += cpu_s

    def phase(self, name: str, seconds: float, cpu_s: float = 0.0) -> None:
        with self.recorder.phase(name):
            self.work(seconds, cpu_s)

    def end(self) -> EnergyFigure:
        return self.recorder.end_window(self.window)


def totals(figure: EnergyFigure) -> dict[str, float | None]:
    return {name: part.total_j for name, part in figure.phases.items()}


def require_sums(figure: EnergyFigure) -> None:
    """What holds for every figure, whatever happened."""
    parts = figure.phases.values()
    assert sum(part.seconds for part in parts) == pytest.approx(figure.seconds, abs=1e-9)
    assert all(part.cpu_s >= 0 for part in parts)
    for part in parts:
        sums = [part.total_j, part.uncertainty_j]
        assert sums == [None, None] or all(value is not None and value >= 0 for value in sums)
        assert part.net_j is None or part.net_j >= 0
    if figure.total_j is None:
        assert all((part.total_j, part.net_j, part.uncertainty_j) == (None, None, None) for part in parts)
        return
    assert sum(part.total_j or 0.0 for part in parts) == pytest.approx(figure.total_j, abs=1e-9)
    known = [part for part in parts if part.total_j is not None]
    if figure.net_j is None:
        assert all(part.net_j is None for part in parts)
    else:
        assert sum(part.net_j or 0.0 for part in known) >= figure.net_j - 1e-9
