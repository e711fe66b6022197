"""Joules per phase: they follow processor time and add up to the window's, whatever happens."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phased_run import Run, require_sums, totals
from power_fakes import Clock, FakeMeter, by_hand

from edge_sel.config.profiles import Profile
from edge_sel.power.meter import Reading
from edge_sel.power.recorder import EnergyRecorder

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


def test_a_window_of_no_time_has_no_phases() -> None:
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


def test_phases_are_plain_numbers_in_json() -> None:
    run = Run()
    run.phase("train", 0.5, cpu_s=0.5)
    answer = json.loads(json.dumps(run.end().to_json()))
    assert set(answer["phases"]["train"]) == {"total_j", "net_j", "seconds", "cpu_s", "uncertainty_j"}
    assert answer["phases"]["train"]["total_j"] == pytest.approx(5.0)


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


# The real clock and threads


def test_switching_beside_a_busy_background_thread_loses_nothing() -> None:
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
