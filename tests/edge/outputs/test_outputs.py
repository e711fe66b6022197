"""What a session leaves behind: run.json, history.csv, events.jsonl, model.onnx."""

import csv
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file

from edge_sel.data.dataset import normalise
from edge_sel.edge.judge import evaluate, evaluate_logits
from edge_sel.edge.outputs.logs import EventLog, write_history
from edge_sel.edge.outputs.model_files import verify_model
from edge_sel.edge.outputs.summary import SCHEMA
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import EdgeSelError
from edge_sel.files import finite
from edge_sel.power.meter import MeterError, Reading
from edge_sel.power.recorder import EnergyRecorder
from tests.edge.sessions import StopAt, Tape, Ticks, digits, events, history, of_counts, pack, session

PUBLISHED = ["epoch", "stage", "train_acc", "train_loss", "test_full", "test_100", "flops_T", "time_s", "sparsity"]
ENERGY = ["energy_j", "net_j", "energy_source", "meter", "power_w", "temp_c"]
FILES = {"run.json", "history.csv", "events.jsonl", "journal.jsonl", "power.csv", "model.onnx", "weights.safetensors",
         "learnt.safetensors"}  # fmt: skip


class TenWatts:
    """A counter that goes up by 10 J a second, and breaks after so many looks."""

    name, source, min_window_s = "ten", "measured", 0.0

    def __init__(self, looks=10**9):
        self.looks = looks

    def read(self, now_s):
        self.looks -= 1
        if self.looks < 0:
            raise MeterError("it was unplugged", "plug it in")
        return Reading(now_s, 10 * now_s, None)

    def close(self):
        pass


def metered(meter, temp_c=41.0):
    return EnergyRecorder(meter, Ticks(), background=False, temperature=lambda: temp_c)


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return session(out, test=digits(50, "test"), gate="off", forget=0.67).run(), out


def test_a_finished_run_leaves_these_files_and_no_others(finished):
    assert {path.name for path in finished[1].iterdir()} == FILES


def test_run_json_is_what_is_returned(finished):
    result, out = finished
    text = (out / "run.json").read_text()
    assert strict(text) == strict(json.dumps(result))


def test_run_json_holds_the_keys_of_the_contract(finished):
    """The keys of design.md's contract, with their types."""
    result, out = finished
    assert result["schema"] == SCHEMA == 1 and result["run"] == str(out) and result["engine"] == "ort"
    assert result["plan"] == "bn,last-c25" and result["stopped"] == "done" and result["shipped"] in (True, False)
    assert {"pack", "accuracy", "energy", "epochs", "skipped_images"} <= result.keys()
    assert {"before", "after", "validation_before", "validation_after"} <= result["accuracy"].keys()
    assert all(
        0 <= result["accuracy"][key] <= 1 for key in ("before", "after", "validation_before", "validation_after")
    )
    assert {"total_j", "net_j", "source", "meter"} <= result["energy"].keys()
    keys = {"epoch", "plan", "energy_j", "net_j", "energy_source", "power_w", "temp_c", "active_rate", "sparsity"}
    keys |= {"train_loss", "nominal_flops_t", "executed_flops_t", "time_s"}
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2, 3]
    assert [epoch["plan"] for epoch in result["epochs"]] == ["bn", "last-c25", "last-c25"]
    for epoch in result["epochs"]:
        assert keys <= epoch.keys()
        assert 0 <= epoch["active_rate"] <= 1
    assert result["settings"]["epochs"] == {"value": 2, "origin": "flag"}
    assert result["images"] == {"train": 100, "validation": 20, "test": 50}
    assert set(result["after"]["test"]["classes"]) == set(pack().manifest.model.classes)


def test_without_a_meter_energy_is_unavailable_and_never_zero(finished):
    result, out = finished
    energy = result["energy"]
    assert energy["source"] == "unavailable" and energy["why"]
    assert [energy[key] for key in ("total_j", "net_j", "meter", "uncertainty_j", "idle_w")] == [None] * 5
    for epoch, row in zip(result["epochs"], history(out), strict=True):
        assert epoch["energy_source"] == row["energy_source"] == "unavailable"
        for key in ("energy_j", "net_j", "power_w", "temp_c"):
            assert epoch[key] is None and row[key] == ""
        assert row["meter"] == ""


def test_with_a_meter_joules_are_power_times_time(tmp_path):
    result = session(tmp_path, recorder=metered(TenWatts())).run()
    assert result["energy"]["source"] == "measured" and result["energy"]["meter"] == "ten"
    assert result["energy"]["total_j"] == pytest.approx(10 * result["time_s"])
    for epoch, row in zip(result["epochs"], history(tmp_path), strict=True):
        assert epoch["energy_j"] == pytest.approx(10 * epoch["time_s"]) and epoch["power_w"] == pytest.approx(10)
        assert epoch["energy_source"] == "measured" and epoch["net_j"] is None  # idle was not measured
        assert float(row["energy_j"]) == epoch["energy_j"] and row["energy_source"] == "measured"
    assert sum(epoch["energy_j"] for epoch in result["epochs"]) < result["energy"]["total_j"]


def test_joules_go_on_after_a_resume(tmp_path):
    session(tmp_path, recorder=metered(TenWatts()), should_stop=StopAt(9)).run()
    result = session(tmp_path, recorder=metered(TenWatts()), resume=True).run()
    assert result["energy"]["total_j"] == pytest.approx(10 * result["time_s"])
    assert all(epoch["energy_j"] == pytest.approx(10 * epoch["time_s"]) for epoch in result["epochs"])


def test_a_part_without_a_meter_makes_the_sum_unknown(tmp_path):
    session(tmp_path, should_stop=StopAt(9)).run()
    result = session(tmp_path, recorder=metered(TenWatts()), resume=True).run()
    assert result["energy"]["total_j"] is None and result["energy"]["source"] == "unavailable"
    sources = [epoch["energy_source"] for epoch in result["epochs"]]
    assert sources == ["unavailable", "unavailable", "measured"]
    assert [epoch["energy_j"] is None for epoch in result["epochs"]] == [True, True, False]


def test_a_meter_lost_on_the_way(tmp_path):
    result = session(tmp_path, recorder=metered(TenWatts(looks=4))).run()
    assert result["stopped"] == "done"
    assert [epoch["energy_source"] for epoch in result["epochs"]] == ["measured", "unavailable", "unavailable"]
    assert result["energy"]["total_j"] is None and "unplugged" in result["energy"]["why"]


def test_history_has_the_published_columns_first_and_then_ours(finished):
    result, out = finished
    with (out / "history.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header[:9] == PUBLISHED
    assert set(ENERGY) <= set(header) and len(header) == len(set(header))
    for name in pack().manifest.model.classes:
        assert {f"E_{name}", f"C_{name}", f"acc_{name}"} <= set(header)
    assert len(rows) == len(result["epochs"]) and all(len(row) == len(header) for row in rows)
    assert "nan" not in (out / "history.csv").read_text().lower()


def test_flops_are_cumulative_and_nominal(finished):
    result, out = finished
    total = 0.0
    assert sum(epoch["nominal_flops_t"] > 0 for epoch in result["epochs"]) > 1
    for epoch, row in zip(result["epochs"], history(out), strict=True):
        total += epoch["nominal_flops_t"]
        assert float(row["flops_T"]) == pytest.approx(total)
        assert float(row["executed_flops_T"]) == epoch["executed_flops_t"]


def test_history_holds_the_same_numbers_as_run_json(finished):
    result, out = finished
    for epoch, row in zip(result["epochs"], history(out), strict=True):
        for key in ("epoch", "stage", "train_acc", "train_loss", "time_s", "sparsity", "validation_acc", "active_rate"):
            assert row[key] == ("" if epoch[key] is None else str(epoch[key]))
        for name, figures in epoch["classes"].items():
            for column, key in (("E", "E"), ("C", "C"), ("acc", "acc")):
                assert row[f"{column}_{name}"] == ("" if figures[key] is None else str(figures[key]))


def test_unknown_is_an_empty_cell(tmp_path):
    """An epoch that trained nothing has no loss, a class without images no accuracy."""
    session(tmp_path, images=of_counts(12, 12), plan="affine", batch_size=64, gate="off", curriculum="off").run()
    first, last = history(tmp_path)
    assert first["train_acc"] == first["train_loss"] == first["E_0"] == first["C_0"] == ""
    assert first["test_full"] == first["test_100"] == ""
    assert last["train_loss"] != "" and last["E_0"] != "" and last["acc_1"] != ""
    assert last["E_9"] == last["C_9"] == last["acc_9"] == ""
    assert first["epoch"] == "1" and float(first["flops_T"]) == 0  # known to be nothing
    result = strict((tmp_path / "run.json").read_text())
    assert result["epochs"][0]["train_loss"] is None and result["epochs"][1]["classes"]["9"]["acc"] is None


def test_odd_class_names_do_not_break_the_table(tmp_path):
    names = ['a,b"', "line\nbreak", "ünï"]
    entry = {"epoch": 1, "nominal_flops_t": 0.0, "executed_flops_t": 1.0, "classes": {names[0]: {"E": 0.5}}}
    write_history(tmp_path / "history.csv", [entry], names)
    (row,) = history(tmp_path)
    assert row['E_a,b"'] == "0.5" and row["acc_line\\nbreak"] == "" and "C_ünï" in row


def test_events_come_in_order_with_the_reasons_of_each_stage(finished):
    _, out = finished
    found = events(out)
    kinds = [event["event"] for event in found]
    assert kinds[:3] == ["started", "evaluated", "stage_begun"] and kinds[-2:] == ["decided", "finished"]
    assert kinds.count("epoch") == 3
    stages = [(event["plan"], event["why"]) for event in found if event["event"] == "stage_begun"]
    assert stages == [("bn", "as told"), ("last-c25", "as told")]
    assert [event["why"] for event in found if event["event"] == "stages_ended"] == ["no more plans"]
    assert [event["epoch"] for event in found if event["event"] == "epoch"] == [1, 2, 3]
    times = [event["t_s"] for event in found]
    assert times == sorted(times)
    assert all(strict(line) for line in (out / "events.jsonl").read_text().splitlines())


def test_a_listener_hears_what_is_written(tmp_path):
    tape = Tape()
    session(tmp_path, listener=tape).run()
    heard = [strict(json.dumps(finite(event))) for event in tape.events if event["event"] != "step"]
    assert heard == events(tmp_path)


def test_events_of_a_resumed_run_follow_the_earlier_ones(tmp_path):
    session(tmp_path, should_stop=StopAt(5)).run()
    earlier = events(tmp_path)
    session(tmp_path, resume=True).run()
    found = events(tmp_path)
    assert found[: len(earlier)] == earlier and earlier[-1]["event"] == "stopped"
    assert found[len(earlier)]["event"] == "resumed"


@pytest.mark.parametrize("half", ['{"t_s": 1, "ev', "{"])
def test_half_a_line_left_by_a_power_cut_is_dropped(half, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "started"}\n' + half)
    log = EventLog(path, Ticks(), lambda event: None)
    log("resumed", images=3)
    assert [event["event"] for event in events(tmp_path)] == ["started", "resumed"]


def test_numbers_that_are_none_become_null():
    value = {"a": float("nan"), "b": [np.float32("inf"), 1, (np.int64(2), -float("inf"))], "c": np.bool_(True)}
    assert strict(json.dumps(finite(value))) == {"a": None, "b": [None, 1, [2, None]], "c": True}


def test_the_model_runs_in_plain_onnxruntime_as_well_as_told(finished):
    """In plain ONNX Runtime, with one input, as good as the session says."""
    result, out = finished
    model = ort.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in model.get_inputs()] == ["x"]
    info, images = pack().manifest.model, digits(50, "test")
    logits = model.run(None, {"x": normalise(images.read(np.arange(50)), info.mean, info.std)})[0]
    figures = evaluate_logits(logits, images.labels)
    assert figures.accuracy == result["accuracy"]["after"]
    assert figures.loss == pytest.approx(result["after"]["test"]["loss"], rel=1e-3)
    weights = OrtEngine(1).predictor(pack(), load_file(out / "weights.safetensors"))
    assert evaluate(weights, images, info).loss == pytest.approx(figures.loss, rel=1e-3)
    facts = model.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(info.classes)
    assert json.loads(facts["mean"]) == pytest.approx(info.mean) and json.loads(facts["std"]) == pytest.approx(info.std)


def test_model_is_valid_and_holds_its_weights(finished):
    model = onnx.load(finished[1] / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    sizes = {"batch" if d.dim_param else d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim}
    assert "batch" in sizes  # any number of images


def test_a_written_model_that_differs_is_noticed(finished):
    def predict(images):
        return np.zeros((len(images), 10), np.float32) + np.arange(10, dtype=np.float32)

    with pytest.raises(EdgeSelError, match="differ by more than rounding") as caught:
        verify_model(finished[1] / "model.onnx", predict, pack().manifest.model)
    assert caught.value.exit_code == 1
