"""The real governor on a simulated small board: an hour in seconds, the same every time.

    python tools/simulate_governor.py [--max-temp 70C] [--energy-budget 14kJ] [--power-cap 5W] [--seed N] [--json]

The board has two thermal masses, chip and board, each warming the next through a resistance:

    C_chip  dT_chip/dt  = P - (T_chip - T_board) / R_chip
    C_board dT_board/dt = (T_chip - T_board) / R_chip - (T_board - T_air) / R_board

Its constants are assumptions in the range of a fanless Raspberry Pi 4. The sensor is read once a second, in steps of
half a degree and with noise; after 20 minutes the sun comes out, after 40 another program draws half a watt. Steps
take 0.2 to 0.6 s at the gate's own rate and less under pressure. What is simulated is the world, not the governor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np

from edge_sel.edge.governor import Governor
from edge_sel.edge.limits import Ceiling, EnergyBudget, Limit, PowerCap, Readings
from edge_sel.units import (
    format_duration,
    format_energy,
    format_power,
    parse_energy_j,
    parse_power_w,
    parse_temperature_c,
)

TICK_S = 0.05
IDLE_W, BUSY_W, OTHER_W = 2.7, 6.4, 0.5
CHIP_J_PER_C, BOARD_J_PER_C = 3.0, 60.0
CHIP_C_PER_W, BOARD_C_PER_W = 1.5, 7.0
AIR_C, SUN_C = 30.0, 8.0
CLOSING_S, CLOSING_PARTS = 12.0, 40


@dataclass
class Board:
    """Temperatures, joules and time; the sensor is what the governor may see of them."""

    rng: np.random.Generator
    now_s: float = 0.0
    energy_j: float = 0.0
    chip_c: float = AIR_C + IDLE_W * (CHIP_C_PER_W + BOARD_C_PER_W)
    board_c: float = AIR_C + IDLE_W * BOARD_C_PER_W
    hottest_c: float = 0.0
    _sensor: tuple[float, float] = (-1.0, 0.0)

    def spend(self, seconds: float, power_w: float) -> None:
        """Let time pass at this power of our own work."""
        while seconds > 1e-9:
            tick = min(TICK_S, seconds)
            air_c = AIR_C + (SUN_C if self.now_s > 1200 else 0.0)
            watts = power_w + (OTHER_W if self.now_s > 2400 else 0.0)
            flow_w = (self.chip_c - self.board_c) / CHIP_C_PER_W
            self.chip_c += (watts - flow_w) / CHIP_J_PER_C * tick
            self.board_c += (flow_w - (self.board_c - air_c) / BOARD_C_PER_W) / BOARD_J_PER_C * tick
            self.now_s, self.energy_j = self.now_s + tick, self.energy_j + watts * tick
            self.hottest_c = max(self.hottest_c, self.chip_c)
            seconds -= tick

    def sensed_c(self) -> float:
        """The sensor: a second old at most, half a degree coarse, a little noisy."""
        if self.now_s - self._sensor[0] >= 1.0:
            noisy = self.chip_c + self.rng.normal(0.0, 0.1)
            self._sensor = (self.now_s, round(noisy * 2) / 2)
        return self._sensor[1]


@dataclass
class Outcome:
    """What became of a simulated run."""

    stopped: str
    seconds: float
    energy_j: float
    hottest_c: float
    steps: int
    longest_step_j: float
    mean_w: float
    work_done: float
    decisions: list[dict[str, Any]] = field(default_factory=list)


def simulate(
    seed: int, *, minutes: float, max_c: float | None, budget_j: float | None, cap_w: float | None, work: int = 12_000
) -> Outcome:
    """Run ``work`` steps, or as many as the limits and the time let it."""
    rng = np.random.default_rng(seed)
    board = Board(rng)
    limits: list[Limit] = []
    if budget_j is not None:
        limits.append(EnergyBudget(budget_j))
    if max_c is not None:
        limits.append(Ceiling(max_c))
    if cap_w is not None:
        limits.append(PowerCap(cap_w))
    decisions: list[dict[str, Any]] = []
    governor = Governor(
        limits,
        lambda: Readings(board.now_s, board.energy_j, board.sensed_c()),
        sleep=lambda seconds: board.spend(seconds, IDLE_W),
        emit=lambda event, **details: decisions.append({"at_s": round(board.now_s, 3), **details}),
    )
    governor.expect({"closing_s": CLOSING_S, "closing_j": CLOSING_S * BUSY_W})
    stopped, steps, longest_j = "done", 0, 0.0
    for step in range(work):
        before_j = board.energy_j
        board.spend(rng.uniform(0.2, 0.6) * (1 - 0.9 * governor.pressure), BUSY_W)
        steps, longest_j = step + 1, max(longest_j, board.energy_j - before_j)
        reason = governor.at_boundary(float(work - steps))
        if reason is not None or board.now_s > 60 * minutes:
            stopped = reason or "time"
            break
    for _ in range(CLOSING_PARTS):
        governor.pause_if_due()
        board.spend(CLOSING_S / CLOSING_PARTS, BUSY_W)
    mean_w = board.energy_j / board.now_s
    return Outcome(
        stopped, board.now_s, board.energy_j, board.hottest_c, steps, longest_j, mean_w, steps / work, decisions
    )


@click.command()
@click.option("--seed", default=0, show_default=True)
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--max-temp", default="70C", show_default=True)
@click.option("--energy-budget", default="14kJ", show_default=True)
@click.option("--power-cap")
@click.option("--json", "as_json", is_flag=True, help="Everything, with each decision.")
def main(seed: int, minutes: float, max_temp: str, energy_budget: str, power_cap: str | None, as_json: bool) -> None:
    """Simulate a run under limits, and the same run without any."""
    cap_w = None if power_cap is None else parse_power_w(power_cap)
    max_c, budget_j = parse_temperature_c(max_temp), parse_energy_j(energy_budget)
    free = simulate(seed, minutes=minutes, max_c=None, budget_j=None, cap_w=None)
    held = simulate(seed, minutes=minutes, max_c=max_c, budget_j=budget_j, cap_w=cap_w)
    if as_json:
        click.echo(json.dumps({"free": vars(free), "held": vars(held)}))
        return
    for name, run in (("without limits", free), ("with limits", held)):
        counts = {kind: sum(d["action"] == kind for d in run.decisions) for kind in ("pressure", "duty", "pause")}
        click.echo(
            f"{name:15} {run.stopped:12} {format_duration(run.seconds):>8} {format_energy(run.energy_j):>8} "
            f"{format_power(run.mean_w):>7} hottest {run.hottest_c:.1f} °C, {run.work_done:.0%} of the work, "
            f"one step at most {format_energy(run.longest_step_j)}; {counts}"
        )


if __name__ == "__main__":
    main()
