"""Joules per phase: they add up to the window's, follow processor time, and are None where nothing is known."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_fakes import Clock, FakeMeter, by_hand

from edge_sel.config.profiles import Profile
from edge_sel.power import EnergyFigure, EnergyRecorder, Reading
from edge_sel.power.figure import RELATIVE_ERROR


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
        told = [part.total_j, part.uncertainty_j]
        assert told == [None, None] or all(value is not None and value >= 0 for value in told)
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


# How joules are shared out


def test_the_idle_part_goes_by_time_and_the_rest_by_processor_time() -> None:
    run = Run(14.0, idle_w=4.0)
    run.phase("train", 0.03, cpu_s=0.06)
    run.phase("load", 0.02, cpu_s=0.02)
    figure = run.end()
    train, load = figure.phases["train"], figure.phases["load"]
    assert set(figure.phases) == {"train", "load"}
    assert train.total_j == pytest.approx(4 * 0.03 + 10 * 0.05 * 0.75)
    assert load.total_j == pytest.approx(4 * 0.02 + 10 * 0.05 * 0.25)
    assert (train.net_j, load.net_j) == (pytest.approx(0.375), pytest.approx(0.125))
    assert (train.seconds, train.cpu_s) == (pytest.approx(0.03), pytest.approx(0.06))
    assert figure.total_j == pytest.approx(0.7)


def test_without_processor_time_all_goes_by_time() -> None:
    run = Run(14.0)
    run.phase("train", 0.03)
    run.phase("load", 0.01)
    assert totals(run.end()) == {"train": pytest.approx(0.42), "load": pytest.approx(0.14)}


def test_without_idle_power_all_goes_by_time() -> None:
    run = Run(12.0, idle_w=None)
    run.phase("train", 0.03, cpu_s=0.03)
    run.phase("load", 0.01)
    figure = run.end()
    assert totals(figure) == {"train": pytest.approx(0.36), "load": pytest.approx(0.12)}
    assert figure.phases["train"].net_j is None


def test_the_meter_s_own_net_goes_by_processor_time() -> None:
    run = Run(14.0, idle_w=4.0)

    class Own:
        name, source, min_window_s = "own", "modelled", 0.1

        def read(self, now_s: float) -> Reading:
            return Reading(now_s, 14.0 * now_s, None, 2.0 * now_s)

        def close(self) -> None: ...

    profile = Profile("p", idle_w=4.0, max_w=20.0)
    run.recorder = by_hand(Own(), run.clock, cpu_time=lambda: run.cpu_s, profile=profile)
    run.window = run.recorder.start_window()
    run.phase("train", 0.1, cpu_s=0.3)
    run.phase("load", 0.3, cpu_s=0.1)
    figure = run.end()
    assert figure.net_j == pytest.approx(0.8)
    assert {name: part.net_j for name, part in figure.phases.items()} == {
        "train": pytest.approx(0.6),
        "load": pytest.approx(0.2),
    }
    assert totals(figure) == {"train": pytest.approx(4 * 0.1 + 3.0), "load": pytest.approx(4 * 0.3 + 1.0)}


def test_each_interval_is_shared_out_by_itself() -> None:
    """In the first one only ``cheap`` runs, at idle power; in the second both do."""
    run = Run(4.0, idle_w=4.0)
    run.phase("cheap", 0.1, cpu_s=0.1)
    run.draw(24.0)
    run.phase("cheap", 0.05, cpu_s=0.0)
    run.phase("dear", 0.05, cpu_s=0.05)
    assert totals(run.end()) == {"cheap": pytest.approx(0.4 + 0.2), "dear": pytest.approx(0.2 + 2.0)}


def test_power_below_idle_goes_by_time() -> None:
    run = Run(3.0, idle_w=4.0)
    run.phase("train", 0.06, cpu_s=0.06)
    run.phase("load", 0.02)
    figure = run.end()
    assert totals(figure) == {"train": pytest.approx(0.18), "load": pytest.approx(0.06)}
    assert [part.net_j for part in figure.phases.values()] == [0.0, 0.0]


# Windows


def test_time_in_no_phase_is_other() -> None:
    run = Run()
    run.work(0.5, cpu_s=0.1)
    figure = run.end()
    part = figure.phases["other"]
    assert set(figure.phases) == {"other"}
    assert (part.total_j, part.seconds, part.cpu_s) == (pytest.approx(5.0), 0.5, pytest.approx(0.1))


def test_phases_nest_and_an_exception_ends_them() -> None:
    run = Run(idle_w=None)
    with pytest.raises(ZeroDivisionError), run.recorder.phase("train"):
        run.work(0.1)
        run.phase("load", 0.02)
        with run.recorder.phase("train"):
            run.work(0.05)
        run.work(0.03)
        raise ZeroDivisionError
    run.work(0.2)
    seconds = {name: part.seconds for name, part in run.end().phases.items()}
    assert seconds == {"train": pytest.approx(0.18), "load": pytest.approx(0.02), "other": pytest.approx(0.2)}


def test_windows_begin_and_end_inside_a_phase() -> None:
    run = Run()
    with run.recorder.phase("train"):
        run.work(0.2, cpu_s=0.1)
        inner = run.recorder.start_window("inner")
        run.work(0.3, cpu_s=0.1)
        lap = run.recorder.lap(inner)
        run.work(0.5)
    after = run.recorder.end_window(inner)
    assert (totals(lap), lap.phases["train"].cpu_s) == ({"train": pytest.approx(3.0)}, pytest.approx(0.1))
    assert (totals(after), after.phases["train"].cpu_s) == ({"train": pytest.approx(5.0)}, 0.0)
    assert totals(run.end()) == {"train": pytest.approx(10.0)}


def test_peeking_and_switching_read_nothing() -> None:
    run = Run()
    run.phase("train", 0.1)
    run.recorder.sample_once()
    reads = run.meter.reads
    run.phase("load", 0.05)
    figure = run.recorder.peek(run.window)
    assert totals(figure) == {"train": pytest.approx(1.0)}
    require_sums(figure)
    assert run.meter.reads == reads
    assert set(run.end().phases) == {"train", "load"}


def test_a_window_of_no_time() -> None:
    run = Run()
    figure = run.recorder.peek(run.window)
    assert (figure.seconds, figure.phases) == (0.0, {})


def test_joules_of_no_time_are_not_lost() -> None:
    """A counter that is refreshed rarely may move between two readings in the same instant."""
    run = Run()
    with run.recorder.phase("train"):
        run.meter.energy_j += 3.0
        figure = run.end()
    require_sums(figure)
    assert figure.total_j == pytest.approx(3.0)


def test_after_the_end_time_stands_still() -> None:
    run = Run()
    with run.recorder:
        run.phase("train", 0.1)
    run.phase("late", 5.0)
    figure = run.end()
    assert totals(figure) == {"train": pytest.approx(1.0)}
    require_sums(figure)


def test_json_has_plain_numbers() -> None:
    run = Run()
    run.phase("train", 0.5, cpu_s=0.5)
    told = json.loads(json.dumps(run.end().to_json()))
    assert set(told["phases"]["train"]) == {"total_j", "net_j", "seconds", "cpu_s", "uncertainty_j"}
    assert told["phases"]["train"]["total_j"] == pytest.approx(5.0)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("work"), st.floats(0.0, 1.5), st.floats(0.0, 1.0)),
        st.tuples(st.just("enter"), st.sampled_from(["train", "load", "other"])),
        st.tuples(st.just("draw"), st.floats(0.0, 50.0)),
        st.tuples(st.sampled_from(["leave", "sample", "lap", "peek", "start", "end", "restart"])),
    ),
    min_size=5,
    max_size=60,
)


@given(OPERATIONS, st.booleans(), st.sampled_from([None, 4.0]))
def test_phases_add_up_whatever_happens(operations: list[tuple[Any, ...]], counter: bool, idle_w: float | None) -> None:
    run = Run(idle_w=idle_w, counter=counter)
    inside, windows, figures, laps = [], [], [], []
    for name, *arguments in operations:
        if name == "work":
            run.work(*arguments)
        elif name == "draw":
            run.meter.power_w = arguments[0]
        elif name == "enter":
            inside.append(run.recorder.phase(arguments[0]))
            inside[-1].__enter__()
        elif name == "leave" and inside:
            inside.pop().__exit__(None, None, None)
        elif name == "sample":
            run.recorder.sample_once()
        elif name == "lap":
            laps.append(run.recorder.lap(run.window))
        elif name == "peek":
            figures.append(run.recorder.peek(run.window))
        elif name == "start":
            windows.append(run.recorder.start_window())
        elif name == "end" and windows:
            figures.append(run.recorder.end_window(windows.pop()))
        elif name == "restart":  # as after a suspended machine
            run.meter.energy_j = 0.0
    laps.append(run.end())
    for figure in [*figures, *laps]:
        require_sums(figure)
    assert sum(part.cpu_s for figure in laps for part in figure.phases.values()) == pytest.approx(run.cpu_s, abs=1e-9)


# Gaps and losses


def test_a_counter_s_gap_is_shared_out_too() -> None:
    run = Run(10.0, idle_w=None)
    run.phase("train", 15.0)
    run.phase("load", 5.0)
    figure = run.end()
    assert figure.gap_s == 20.0
    assert totals(figure) == {"train": pytest.approx(150.0), "load": pytest.approx(50.0)}


def test_a_suspended_machine_is_not_charged_idle_power_in_any_phase() -> None:
    run = Run(14.0, idle_w=4.0)
    run.phase("train", 0.5, cpu_s=0.5)
    run.draw(1.0)
    run.phase("train", 1000.0)
    run.draw(0.5)
    run.phase("load", 1000.0)
    figure = run.end()
    train, load = figure.phases["train"], figure.phases["load"]
    assert (train.total_j, train.net_j) == (pytest.approx(1007.0), pytest.approx(5.0))
    assert (load.total_j, load.net_j) == (pytest.approx(500.0), pytest.approx(0.0))


def test_a_gap_of_sampled_power_has_seconds_but_no_joules() -> None:
    run = Run(10.0, counter=False)
    run.phase("train", 0.5)
    run.recorder.sample_once()
    run.phase("asleep", 60.0)
    figure = run.end()
    asleep = figure.phases["asleep"]
    assert (asleep.total_j, asleep.net_j, asleep.uncertainty_j, asleep.seconds) == (None, None, None, 60.0)
    assert totals(figure)["train"] == pytest.approx(figure.total_j) == pytest.approx(5.0)


def test_a_moment_before_a_gap_does_not_make_it_known() -> None:
    run = Run(10.0, counter=False)
    run.phase("train", 0.5)
    with run.recorder.phase("asleep"):
        run.recorder.sample_once()
        run.work(60.0)
    assert run.end().phases["asleep"].total_j is None


def test_a_gap_makes_the_phase_uncertain_that_it_lies_in() -> None:
    run = Run(10.0, counter=False)
    run.phase("load", 0.5)
    run.recorder.sample_once()
    with run.recorder.phase("train"):
        run.work(0.5)
        run.recorder.sample_once()
        run.work(99.0)
    figure = run.end()
    edges_j, gap_j = 10.0 * run.meter.min_window_s * 0.1, 10.0 * 99.0
    assert uncertainty(figure, "train") == pytest.approx(0.05 * 5 + edges_j + gap_j * 0.995)
    assert uncertainty(figure, "load") == pytest.approx(0.05 * 5 + edges_j + gap_j * 0.005)


@pytest.mark.parametrize("with_meter", [True, False])
def test_without_a_meter_there_are_seconds_and_no_joules(with_meter: bool) -> None:
    run = Run()
    if with_meter:
        run.phase("train", 0.5, cpu_s=0.1)
        run.meter.unplug()
        run.recorder.sample_once()
    else:
        run.recorder = by_hand(None, run.clock, cpu_time=lambda: run.cpu_s)
        run.window = run.recorder.start_window()
        run.phase("train", 0.5, cpu_s=0.1)
    run.phase("load", 0.25, cpu_s=0.2)
    figures = [run.recorder.peek(run.window), run.recorder.lap(run.window)]
    run.phase("load", 0.125)
    figures.append(run.end())
    for figure in figures:
        require_sums(figure)
        assert figure.source == "unavailable"
        assert all(part.total_j is None for part in figure.phases.values())
    train, load = (figures[0].phases[name] for name in ("train", "load"))
    assert (train.seconds, train.cpu_s) == (pytest.approx(0.5), pytest.approx(0.1))
    assert (load.seconds, load.cpu_s) == (pytest.approx(0.25), pytest.approx(0.2))
    assert figures[1].seconds == pytest.approx(0.75)
    assert {name: part.seconds for name, part in figures[2].phases.items()} == {"load": pytest.approx(0.125)}


# Uncertainty


def uncertainty(figure: EnergyFigure, name: str) -> float:
    value = figure.phases[name].uncertainty_j
    assert value is not None
    return value


def test_a_window_of_one_phase_is_as_uncertain_as_the_window() -> None:
    for counter in (True, False):
        run = Run(10.0, counter=counter)
        with run.recorder.phase("train"):
            run.work(0.5)
            run.draw(30.0)
            run.work(0.5)
            figure = run.end()
        assert uncertainty(figure, "train") == pytest.approx(figure.uncertainty_j)


def test_what_was_shared_out_is_as_uncertain_as_a_model() -> None:
    run = Run(14.0, idle_w=4.0)
    run.phase("train", 5.0, cpu_s=6.0)
    run.phase("load", 5.0, cpu_s=4.0)
    figure = run.end()
    edges_j = 14.0 * run.meter.min_window_s * 0.1
    model = RELATIVE_ERROR["modelled"]
    assert uncertainty(figure, "train") == pytest.approx(0.05 * 80 + model * 50 + edges_j)
    assert uncertainty(figure, "load") == pytest.approx(0.05 * 60 + model * 40 + edges_j)


def test_without_idle_power_all_that_was_shared_out_is_uncertain() -> None:
    run = Run(10.0, idle_w=None)
    run.phase("train", 5.0, cpu_s=5.0)
    run.phase("load", 5.0)
    figure = run.end()
    assert uncertainty(figure, "load") == pytest.approx(0.05 * 50 + 0.4 * 50 + 10.0 * 0.05)


def test_a_moment_of_another_phase_makes_nothing_uncertain() -> None:
    """Between two blocks there is always a little time in ``other``."""
    run = Run(14.0, idle_w=4.0)
    run.phase("train", 10.0, cpu_s=10.0)
    run.work(1e-6, cpu_s=1e-6)
    figure = run.end()
    assert uncertainty(figure, "train") == pytest.approx(figure.uncertainty_j, rel=1e-4)


# The real clock and threads


def test_switching_under_a_busy_background_thread() -> None:
    """Twenty thousand switches beside a thread that samples as fast as it can: nothing is lost or counted twice."""

    class Steady:
        name, source, min_window_s = "steady", "measured", 0.0

        def read(self, now_s: float) -> Reading:
            return Reading(now_s, 10.0 * now_s, None)

        def close(self) -> None: ...

    with EnergyRecorder(Steady(), period_s=0.0, temperature=lambda: None) as recorder:
        assert any(thread.name == "energy" for thread in threading.enumerate())
        window = recorder.start_window()
        for number in range(10_000):
            with recorder.phase("even" if number % 2 else "odd"):
                pass
            if number % 1000 == 0:
                require_sums(recorder.peek(window))
        figure = recorder.end_window(window)
    require_sums(figure)
    assert set(figure.phases) == {"even", "odd", "other"}
    assert figure.total_j == pytest.approx(10.0 * figure.seconds)
    assert figure.samples > 10


def test_a_meter_that_takes_its_time_does_not_hold_up_a_phase() -> None:
    reading, release = threading.Event(), threading.Event()

    class Slow(FakeMeter):
        def read(self, now_s: float) -> Reading:
            if threading.current_thread().name == "energy":
                reading.set()
                release.wait(10.0)
            return super().read(now_s)

    clock = Clock()
    recorder = EnergyRecorder(Slow(clock), clock, period_s=0.001, temperature=lambda: None)
    with recorder:
        assert reading.wait(10.0)
        began_s = time.perf_counter()
        with recorder.phase("train"):
            clock.sleep(1.0)
        assert time.perf_counter() - began_s < 1.0
        release.set()
