"""``edge-sel reference`` as a person calls it."""

import csv
import json

import pytest

from tests.cli.shell import SETUP, USAGE, block, refused, run


def test_dry_run_says_what_would_run(edge_sel):
    answer = json.loads(edge_sel("reference", "--dry-run", "--json").out)
    systems = {system["name"]: system for system in answer["systems"]}
    assert answer["schema"] == 1 and next(iter(systems)) == "baseline"
    assert (systems["baseline"]["epochs"], systems["baseline"]["nominal_flops_t"]) == (30, 33.521886)
    assert systems["lottery-ticket"]["nominal_flops_t"] == 6.704376 and systems["sel-95"]["nominal_flops_t"] is None


def test_smoke_runs_offline_and_goes_on_and_compares(edge_sel, tmp_path):
    first = edge_sel("reference", "ast", "fast-sel", "--smoke", "--device", "cpu", "--json")
    assert first.code == 0, first.err
    answer = json.loads(first.out)
    assert [system["system"] for system in answer["systems"]] == ["ast", "fast-sel"]
    assert answer["runs"][0]["scale"] == "smoke" and answer["runs"][0]["label"]
    rows = list(csv.DictReader((tmp_path / "runs/reference/ast/seed-0/history.csv").read_text().splitlines()))
    assert len(rows) == answer["systems"][0]["epochs"] and rows[0]["energy_source"] in (
        "measured",
        "modelled",
        "unavailable",
    )
    again = edge_sel("reference", "ast", "--scale", "smoke", "--device", "cpu")
    assert "is finished already" in again.err and "NOT comparable" in again.out
    shown = edge_sel("reference", "--compare")
    assert shown.code == 0 and "0.612" in shown.out and "AST README" in shown.out and "NOT comparable" in shown.out
    claims = json.loads(edge_sel("reference", "--compare", "--json").out)["claims"]
    assert {"claim", "ours", "difference", "source", "comparable"} <= claims[0].keys()


def test_mistakes_are_one_line(edge_sel, tmp_path):
    refused(edge_sel("reference", "sel95"), USAGE, "sel95", "sel-95")
    refused(edge_sel("reference", "--scale", "smal"), USAGE, "small")
    refused(edge_sel("reference", "--smoke", "--data", "digitz", "--json", "ast"), USAGE, "digits")
    refused(edge_sel("reference", "--compare", "--out", "none"), USAGE, "none", "edge-sel reference")
    refused(edge_sel("reference", "ast", "--smoke", "--device", "gpu"), USAGE, "gpu", "cuda")
    refused(edge_sel("reference", "ast", "--smoke", "--device", "cuda:7"), SETUP, "cuda:7", "--device cpu")
    refused(edge_sel("reference", "ast", "--smoke", "--meter", "nvlm"), USAGE, "nvml")
    refused(
        edge_sel("reference", "ast", "--smoke", "--model", "resnet-d", "--device", "cpu", "--json"), USAGE, "resnet-c"
    )
    refused(edge_sel("reference", "--edge", "run"), USAGE, "--compare")
    refused(edge_sel("reference", "ast", "--smoke", "--image-size", "64"), USAGE, "--image-size", "--data")
    foreign = tmp_path / "runs/reference/ast/seed-0/run.json"
    foreign.parent.mkdir(parents=True)
    keys = ("system", "seed", "scale", "label", "data_name", "weights", "summary", "identity", "rows")
    for text in (
        '{"schema":1',
        "[1]",
        '{"schema": 1, "identity": {}, "epochs": []}',
        json.dumps(dict.fromkeys(keys, 1)),
    ):
        foreign.write_text(text)
        refused(edge_sel("reference", "--compare"), USAGE, "no finished results")


def test_without_torch_it_says_what_to_install(tmp_path):
    result = run("reference", "--dry-run", cwd=tmp_path, PYTHONPATH=block(tmp_path / "without", "torch"))
    assert result.returncode == SETUP and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "torch" in result.stderr and "edge-sel[server]" in result.stderr and "onnxscript" not in result.stderr


@pytest.mark.slow
def test_results_stand_beside_a_fine_tune_where_torch_is_not(edge_sel, tmp_path):
    assert edge_sel("reference", "fast", "--smoke", "--device", "cpu").code == 0
    without = block(tmp_path / "without", "torch")
    tuned = run("finetune", "--plan", "bn", "--out", "edge", cwd=tmp_path, PYTHONPATH=without)
    assert tuned.returncode == 0, tuned.stderr
    asked = ("reference", "--compare", "--edge", "edge")
    shown = run(*asked, cwd=tmp_path, PYTHONPATH=without)
    assert shown.returncode == 0 and "edge, plan bn" in shown.stdout and "reference, fast" in shown.stdout, shown.stderr
    answer = json.loads(run(*asked, "--json", cwd=tmp_path, PYTHONPATH=without).stdout)
    epochs = [*answer["edge"]["epochs"], *answer["reference_epochs"]]
    assert len(answer["edge"]["epochs"]) == len(answer["reference_epochs"]) == 1
    assert all({"images", "energy_j", "energy_source", "j_per_image"} <= epoch.keys() for epoch in epochs)


def test_a_signal_leaves_what_can_be_resumed(edge_sel, monkeypatch):
    monkeypatch.setattr("edge_sel.runs.stop_signal.StopSignal.__call__", lambda self: "signal")
    result = edge_sel("reference", "ast", "--smoke", "--device", "cpu")
    assert result.code == 75 and result.out == "" and "goes on from the last finished epoch" in result.err
