"""Phases of which not all is known: gaps, a lost meter, and how uncertain what was shared out is."""

from __future__ import annotations

import pytest
from phased_run import Run, require_sums, totals
from power_fakes import by_hand

from edge_sel.power.figure import RELATIVE_ERROR, EnergyFigure


def uncertainty(figure: EnergyFigure, name: str) -> float:
    value = figure.phases[name].uncertainty_j
    assert value is not None
    return value


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


@pytest.mark.parametrize("counter", [True, False])
def test_a_window_of_one_phase_is_as_uncertain_as_the_window(counter: bool) -> None:
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
