"""The model against numbers worked out by hand, and against counters that misbehave."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_fakes import Clock, by_hand

from edge_sel.config.profiles import Profile
from edge_sel.power.meter import MeterError
from edge_sel.power.psutil_model import PsutilModel


class Machine:
    """Two cores, 4 W idle, 10 W busy: 3 W for each busy core."""

    def __init__(self) -> None:
        self.clock, self.busy_s, self.process_s, self.idle_s = Clock(), 50.0, 7.0, 1000.0
        self.model = PsutilModel(
            4.0, 10.0, cores=2, cpu_times=self.cpu_times, process_time=lambda: self.process_s, clock=self.clock
        )

    def cpu_times(self) -> SimpleNamespace:
        return SimpleNamespace(user=self.busy_s * 0.75, system=self.busy_s * 0.25, idle=self.idle_s, iowait=3.0)

    def work(self, seconds: float, busy_s: float = 0.0, process_s: float = 0.0) -> tuple[float, float]:
        self.clock.sleep(seconds)
        self.busy_s += busy_s
        self.process_s += process_s
        reading = self.model.read(self.clock())
        assert reading.energy_j is not None
        assert reading.net_j is not None
        assert (reading.time_s, reading.power_w) == (self.clock(), None)
        return reading.energy_j, reading.net_j


def test_joules_are_idle_watts_and_watts_per_busy_core() -> None:
    machine = Machine()
    # 2 s idle at 4 W = 8 J; 3 core-seconds at 3 W = 9 J, of which 1.5 core-seconds = 4.5 J are ours.
    assert machine.work(2.0, busy_s=3.0, process_s=1.5) == (pytest.approx(17.0), pytest.approx(4.5))
    # One second more, both cores ours: 10 W.
    assert machine.work(1.0, busy_s=2.0, process_s=2.0) == (pytest.approx(27.0), pytest.approx(10.5))
    # A second of nothing costs the idle power and nothing of it is ours.
    assert machine.work(1.0) == (pytest.approx(31.0), pytest.approx(10.5))


def test_waiting_is_not_work() -> None:
    machine = Machine()
    machine.idle_s += 500
    assert machine.work(1.0) == (pytest.approx(4.0), 0.0)


def test_no_more_than_every_core_can_be_busy() -> None:
    machine = Machine()
    assert machine.work(1.0, busy_s=90.0)[0] == pytest.approx(10.0)
    assert machine.work(1.0)[0] == pytest.approx(14.0), "what was impossible is not made up for later"


def test_a_counter_that_goes_backwards_made_no_progress() -> None:
    machine = Machine()
    assert machine.work(1.0, busy_s=-20.0)[0] == pytest.approx(4.0)
    assert machine.work(1.0, busy_s=1.0)[0] == pytest.approx(11.0)


def test_a_clock_that_goes_backwards_does_not_take_joules_back() -> None:
    machine = Machine()
    before = machine.work(1.0, busy_s=1.0)
    assert machine.work(-0.5) == before


def test_the_steps_of_the_system_counter_are_not_lost() -> None:
    """It moves by 10 ms a core at once: more than a reading taken every 5 ms seems to allow."""
    machine = Machine()
    for number in range(1, 401):
        energy_j, _ = machine.work(0.005, busy_s=0.02 if number % 2 == 0 else 0.0)
    assert energy_j == pytest.approx(20.0, rel=0.01)


def test_a_frozen_system_counter_cannot_hide_this_process() -> None:
    machine = Machine()
    gross_j, net_j = machine.work(1.0, busy_s=0.0, process_s=1.0)
    assert (gross_j, net_j) == (pytest.approx(7.0), pytest.approx(3.0))


STEPS = st.lists(st.tuples(st.floats(0, 10), st.floats(-5, 30), st.floats(0, 1)), min_size=1, max_size=30)


@given(STEPS)
def test_whatever_happens_the_joules_are_possible(steps: list[tuple[float, float, float]]) -> None:
    machine = Machine()
    gross_j = net_j = seconds = 0.0
    for dt, busy_s, share in steps:
        seconds += dt
        last = gross_j, net_j
        gross_j, net_j = machine.work(dt, busy_s, process_s=share * 2 * dt)
        assert gross_j >= last[0] - 1e-9
        assert net_j >= last[1]
        assert 4.0 * seconds - 1e-6 <= gross_j <= 10.0 * seconds + 1e-6
        assert net_j <= gross_j + 1e-9


def test_its_figures_are_modelled_with_its_own_net() -> None:
    machine = Machine()
    recorder = by_hand(machine.model, machine.clock, profile=Profile("p", 4.0, 10.0))
    window = recorder.start_window()
    machine.work(2.0, busy_s=3.0, process_s=1.5)
    figure = recorder.end_window(window)
    assert figure.source == "modelled"
    assert (figure.total_j, figure.net_j) == (pytest.approx(17.0), pytest.approx(4.5))
    assert figure.idle_w == 4.0
    assert recorder.measure_idle(3.0, sleep=pytest.fail) == 4.0


def test_processor_times_that_cannot_be_read_are_an_error() -> None:
    def denied() -> None:
        raise PermissionError(13, "Permission denied", "/proc/stat")

    with pytest.raises(MeterError, match=r"Permission denied.*/proc/stat"):
        PsutilModel(1.0, 2.0, cpu_times=denied)


def test_a_missing_module_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MeterError, match="pip install psutil"):
        PsutilModel(1.0, 2.0)
