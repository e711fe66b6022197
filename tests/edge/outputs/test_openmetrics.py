"""The metrics file tells what the run has done, has spent and was ended by, and nothing that is unknown."""

from __future__ import annotations

import pytest

from edge_sel import __version__
from edge_sel.edge.outputs.openmetrics import REASONS, MetricsFile
from tests.edge.outputs.metrics import LAMP, Bench, samples
from tests.edge.sessions import StopAt, no_meter, session


def test_a_run_from_its_start_to_its_end(tmp_path):
    bench = Bench(tmp_path)
    first = bench.tell("started", images=90, validation=10)
    assert first["edge_sel_epoch"] == 0 and first["edge_sel_steps_total"] == 0
    assert "edge_sel_validation_accuracy_ratio" not in first and "edge_sel_pressure_ratio" not in first
    bench.tell(
        "evaluated", accuracy={"before": 0.5, "after": None, "validation_before": 0.25, "validation_after": None}
    )
    bench.tell("stage_begun", plan="bn", epochs=1)
    bench.wait(2.0)
    now = bench.tell("step", plan_epoch=0, cursor=32, step=3)
    assert now[f"edge_sel_energy_joules_total{LAMP}"] == pytest.approx(20)
    assert now[f"edge_sel_power_watts{LAMP}"] == pytest.approx(10)
    assert now["edge_sel_temperature_celsius"] == 41.5
    assert now["edge_sel_steps_total"] == 3 and now["edge_sel_validation_accuracy_ratio"] == 0.25
    assert now[f'edge_sel_info{{run="runs/a",plan="bn",version="{__version__}"}}'] == 1
    bench.tell("epoch", epoch=1, plan="bn", trained=64, validation_acc=0.5, active_rate=1.0)
    bench.tell("stage_begun", plan="first", epochs=3)
    bench.wait(2.0)
    bench.tell("step", plan_epoch=0, cursor=16, step=2)
    now = bench.tell("epoch", epoch=2, plan="first", trained=40, validation_acc=0.75, active_rate=0.625)
    assert now["edge_sel_epoch"] == 2 and now["edge_sel_steps_total"] == 5, "steps of a new training stage begin at 0"
    assert now["edge_sel_images_trained_total"] == 104
    assert now["edge_sel_validation_accuracy_ratio"] == 0.75 and now["edge_sel_gate_rate_ratio"] == 0.625
    assert all(now[f'edge_sel_stopped{{reason="{reason}"}}'] == 0 for reason in REASONS)
    bench.tell("decided", before=0.25, after=0.8, shipped=True)
    now = bench.tell("finished", shipped=True)
    assert now["edge_sel_validation_accuracy_ratio"] == 0.8
    assert {r for r in REASONS if now[f'edge_sel_stopped{{reason="{r}"}}']} == {"done"}


def test_a_model_that_stays_behind_is_not_the_accuracy(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    assert bench.tell("decided", before=0.5, after=0.25, shipped=False)["edge_sel_validation_accuracy_ratio"] == 0.5


@pytest.mark.parametrize("reason", ["budget", "another"])
def test_a_limit_that_ends_the_run_is_the_reason(tmp_path, reason):
    bench = Bench(tmp_path)
    bench.tell("started")
    bench.tell("stopped", reason=reason)
    now = bench.tell("finished", shipped=True)  # what was learnt before it is guarded and written all the same
    assert {key for key, value in now.items() if "stopped" in key and value} == {
        f'edge_sel_stopped{{reason="{reason}"}}'
    }


def test_pauses_and_pressure_of_the_governor_are_told(tmp_path):
    bench = Bench(tmp_path)
    assert "edge_sel_paused" not in bench.tell("started")
    now = bench.tell("governor", action="pause", limit="temperature", why="75 °C", pressure=0.5)
    assert now["edge_sel_paused"] == 1 and now["edge_sel_pressure_ratio"] == 0.5
    now = bench.tell("governor", action="resume", limit="temperature", paused_s=3.0, duty=1.0)
    assert now["edge_sel_paused"] == 0 and now["edge_sel_pressure_ratio"] == 0.5


def test_a_resumed_run_counts_what_it_does_itself(tmp_path):
    bench = Bench(tmp_path)
    assert "edge_sel_epoch" not in bench.tell("resumed", images=90, validation=10)
    bench.tell("stage_begun", plan="first", epochs=3)
    bench.wait(2.0)
    assert bench.tell("step", step=57)["edge_sel_steps_total"] == 0
    bench.wait(2.0)
    assert bench.tell("step", step=59)["edge_sel_steps_total"] == 2
    assert bench.tell("epoch", epoch=4, trained=10)["edge_sel_epoch"] == 4
    bench.tell("stage_begun", plan="full", epochs=3)
    bench.wait(2.0)
    assert bench.tell("step", step=4)["edge_sel_steps_total"] == 6


def test_images_go_up_inside_an_epoch_where_steps_tell_them(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    counts = []
    for event in ("step", 16), ("step", 32), ("epoch", 40), ("step", 0), ("step", 16), ("epoch", 24):
        bench.wait(2.0)
        counts.append(bench.tell(event[0], step=1, trained=event[1])["edge_sel_images_trained_total"])
    assert counts == [16, 32, 40, 40, 56, 64]


def test_what_is_unknown_has_no_line(tmp_path):
    recorder = no_meter()
    file = MetricsFile(tmp_path / "m.prom", recorder, "run")
    file({"event": "resumed"})
    file(
        {
            "event": "epoch",
            "epoch": 1,
            "trained": 0,
            "validation_acc": float("nan"),
            "active_rate": None,
            "pressure": None,
        }
    )
    assert {key.partition("{")[0] for key in samples(tmp_path / "m.prom")} == {
        "edge_sel_epoch", "edge_sel_steps_total", "edge_sel_images_trained_total", "edge_sel_stopped", "edge_sel_info",
    }  # fmt: skip


def test_a_lost_meter_takes_its_series_away(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    bench.wait(2.0)
    assert f"edge_sel_power_watts{LAMP}" in bench.tell("epoch", epoch=1)
    bench.lamp.broken = True
    bench.wait(2.0)
    assert not any("joules" in key or "watts" in key for key in bench.tell("epoch", epoch=2))


def test_no_joules_before_there_was_time_to_spend_any(tmp_path):
    bench = Bench(tmp_path)
    assert not any("joules" in key or "watts" in key for key in bench.tell("started"))


def test_power_over_a_gap_is_not_known(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    bench.wait(0.5)
    bench.clock.now_s += 600.0  # asleep
    bench.wait(0.5)
    assert f"edge_sel_power_watts{LAMP}" not in bench.tell("epoch", epoch=1)
    bench.wait(2.0)
    assert bench.tell("epoch", epoch=2)[f"edge_sel_power_watts{LAMP}"] == pytest.approx(10)


def test_power_stays_between_two_looks_that_are_too_close(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    bench.wait(1.0)
    assert bench.tell("epoch", epoch=1)[f"edge_sel_power_watts{LAMP}"] == pytest.approx(10)
    bench.wait(0.001)
    assert bench.tell("epoch", epoch=2)[f"edge_sel_power_watts{LAMP}"] == pytest.approx(10)


@pytest.mark.parametrize("boundary", [None, 4])
def test_the_figures_of_a_session_are_those_of_its_result(tmp_path, boundary):
    bench = Bench(tmp_path)
    should_stop = (lambda: None) if boundary is None else StopAt(boundary)
    result = session(tmp_path / "run", recorder=bench.recorder, listener=bench.file, should_stop=should_stop).run()
    now = bench.samples()
    assert now["edge_sel_epoch"] == len(result["epochs"])
    reason = "done" if boundary is None else "signal"
    assert now[f'edge_sel_stopped{{reason="{reason}"}}'] == 1 and not bench.errors
    if boundary is None:
        assert now["edge_sel_validation_accuracy_ratio"] == pytest.approx(
            result["accuracy"]["validation_after" if result["shipped"] else "validation_before"]
        )
        assert now["edge_sel_images_trained_total"] == sum(epoch["trained"] for epoch in result["epochs"])
        assert now["edge_sel_steps_total"] > 0
