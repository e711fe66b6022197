"""What run.json tells beyond the figures, and the power log."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge_sel.edge.energy import Spent
from edge_sel.edge.outputs import logs
from edge_sel.edge.outputs.logs import PowerLog, PowerRow, read_power
from edge_sel.edge.outputs.summary import HARDEST, changed_weights
from edge_sel.power.recorder import EnergyRecorder
from tests.edge.outputs.test_outputs import TenWatts
from tests.edge.sessions import StopAt, Ticks, pack, session


def spent(seconds, total_j=None, **phases):
    return Spent(total_j=total_j, seconds=seconds, phases={name: {"seconds": s} for name, s in phases.items()})


def test_a_row_tells_joules_degrees_and_what_was_mostly_done(tmp_path):
    log = PowerLog(tmp_path / "power.csv", lambda: 51.25)
    log.add(spent(1.0, 10.0, opening=1.0))
    log.add(spent(3.0, 25.0, opening=1.0, train=1.5, load=0.5))
    log.add(spent(4.0, None, opening=1.0, train=1.5, load=1.5))
    assert read_power(tmp_path / "power.csv") == [
        PowerRow(1.0, 10.0, 51.25, "opening"), PowerRow(3.0, 25.0, 51.25, "train"), PowerRow(4.0, None, 51.25, "load"),
    ]  # fmt: skip


def test_time_goes_on_and_a_resumed_run_adds_to_its_rows(tmp_path):
    path = tmp_path / "power.csv"
    log = PowerLog(path, lambda: None)
    for seconds in (1.0, 2.0, 2.0, 5.0):
        log.add(spent(seconds, seconds, train=seconds))
    with path.open("ab") as file:
        file.write(b"6.5,6.5,,tr")  # a power cut
    PowerLog(path, lambda: None).add(spent(4.0, 4.0, lost=1.0))  # its checkpoint was older
    assert [row.seconds for row in read_power(path)] == [1.0, 2.0, 4.0]


def test_it_stays_small_and_keeps_beginning_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "MOST_ROWS", 50)
    log = PowerLog(tmp_path / "power.csv", lambda: None)
    for second in range(1, 2000):
        log.add(spent(second, second, train=second))
    rows = read_power(tmp_path / "power.csv")
    assert len(rows) <= 51 and rows[0].seconds == 1 and rows[-1].seconds == 1999


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"a,b\n1,2\n", b"seconds,total_j,temp_c,phase\nx,1,2,train\n1\n"])
def test_another_file_has_no_rows(tmp_path, content):
    (tmp_path / "power.csv").write_bytes(content)
    assert read_power(tmp_path / "power.csv") == [] == read_power(tmp_path / "none.csv")


def test_a_sensor_or_disk_that_fails_ends_the_log_alone(tmp_path):
    def broken():
        raise RuntimeError("no sensor")

    PowerLog(tmp_path / "power.csv", broken).add(spent(1.0, 1.0, train=1.0))
    (tmp_path / "file").touch()
    PowerLog(tmp_path / "file" / "power.csv", lambda: None).add(spent(1.0, 1.0, train=1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_changed_weights_count_rows_and_distance():
    before = {"a": np.zeros((4, 3), np.float32), "b": np.float32([3.0, 4.0]), "c": np.ones(2, np.float32)}
    after = {"a": before["a"].copy(), "b": np.float32([3.0, 4.5]), "c": before["c"]}
    after["a"][2] = 1.0
    assert changed_weights(before, after) == [
        {"weight": "a", "relative": None, "channels": 4, "updated": 1},
        {"weight": "b", "relative": pytest.approx(0.1), "channels": 2, "updated": 1},
    ]


def test_run_json_tells_what_a_report_shows(tmp_path):
    recorder = EnergyRecorder(TenWatts(), Ticks(), background=False, temperature=lambda: 41.0)
    result = session(tmp_path, plan="bn,last-c25,full", recorder=recorder).run()
    assert json.loads((tmp_path / "run.json").read_text())["confusion"] == result["confusion"]
    classes, after = result["classes"], result["after"]["validation"]
    for when, figures in (("before", result["before"]["validation"]), ("after", after)):
        cells = result["confusion"][when]
        assert sum(images for *_, images in cells) == figures["images"]
        right = sum(images for label, predicted, images in cells if label == predicted)
        assert right == pytest.approx(figures["accuracy"] * figures["images"])
    hardest = result["hardest"]["validation"]
    assert len(hardest) == min(HARDEST, after["images"])
    losses = [image["loss"] for image in hardest]
    assert losses == sorted(losses, reverse=True)
    if len(hardest) == after["images"]:
        assert np.mean(losses) == pytest.approx(after["loss"], rel=1e-5)
    assert {image["label"] for image in result["hardest"]["training"]} <= set(classes)
    assert all(image["visits"] > 0 for image in result["hardest"]["training"])
    dense = result["dense"]
    assert dense["plan"] == "full" and dense["epochs"] == len(result["epochs"])
    assert dense["flops_t"] * 1e12 == 100 * dense["epochs"] * pack().plan("full").flops_train
    assert dense["energy_j"] > 0
    assert [r.seconds for r in read_power(tmp_path / "power.csv")] == sorted(
        {r.seconds for r in read_power(tmp_path / "power.csv")}
    )
    assert {row.temp_c for row in read_power(tmp_path / "power.csv")} == {41.0}


def test_without_joules_there_is_no_price_of_dense_training(tmp_path):
    dense = session(tmp_path, plan="full", epochs=1).run()["dense"]
    assert dense["energy_j"] is None and dense["flops_t"] > 0


def test_a_run_stopped_by_a_signal_tells_none_of_it(tmp_path):
    result = session(tmp_path, should_stop=StopAt(4)).run()
    assert result["stopped"] != "done" and "confusion" not in result
