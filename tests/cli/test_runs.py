"""``edge-sel runs``: what the runs in a folder came to."""

import json
import shutil

import pytest

from tests.cli.shell import PACK

SHORT = ["--plan", "closed_form", "--threads", 1, "--meter", "psutil", "--profile", "cloud-vm", "--json"]


@pytest.fixture
def runs(edge_sel, here, digits_folder):
    """A folder with a finished run, one that a limit stopped, one that was cut, a damaged one, and other things."""
    assert edge_sel("finetune", PACK, "--data", digits_folder, "--out", "runs/good", *SHORT).code == 0
    stopped = edge_sel("finetune", PACK, "--data", digits_folder, "--out", "runs/stopped", *SHORT, "--deadline", "1ms")
    assert stopped.code != 0
    shutil.copytree("runs/good", "runs/cut")
    (here / "runs" / "cut" / "run.json").unlink()
    shutil.copytree("runs/good", "runs/damaged")
    for name in ("run.json", "journal.jsonl"):
        (here / "runs" / "damaged" / name).write_text("{")
    shutil.copytree("runs/good", "runs/refused")
    (here / "runs" / "refused" / "run.json").write_text("{")
    (here / "runs" / "notes").mkdir()
    (here / "runs" / "reference").mkdir()
    (here / "runs" / "reference" / "run.json").write_text(
        json.dumps({"identity": {}, "stopped": "done", "system": "sel"})
    )
    return here / "runs"


def test_each_run_with_its_verdict_accuracy_and_joules(edge_sel, runs):
    result = {run["folder"].rpartition("/")[2]: run for run in json.loads(edge_sel("runs", "--json").out)["runs"]}
    assert {name: run["verdict"] for name, run in result.items()} == {
        "good": "shipped", "stopped": "stopped", "cut": "unfinished", "damaged": "damaged", "refused": "damaged",
    }  # fmt: skip
    summary = json.loads((runs / "good" / "run.json").read_text())
    good = result["good"]
    assert (good["before"], good["after"], good["on"]) == tuple(
        summary["accuracy"][key] for key in ("before", "after", "on")
    )
    assert (good["energy_j"], good["energy_source"]) == (summary["energy"]["total_j"], "modelled")
    assert (
        result["stopped"]["why"] == "deadline"
        and result["cut"]["energy_j"] > 0
        and result["damaged"]["energy_j"] is None
    )


def test_the_table_fits_eighty_columns(edge_sel, runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = edge_sel("runs")
    lines = result.out.splitlines()
    assert result.code == 0 and result.err == "" and len(lines) == 8
    assert max(map(len, lines[:6])) <= 80 and "stopped (deadline)" in result.out
    assert lines[6].startswith("damaged: run.json: is no JSON") and lines[7].startswith("refused: run.json: is no JSON")


@pytest.mark.parametrize("width", (80, 60))
def test_a_long_name_stays_on_its_line_where_figures_can_make_room(edge_sel, runs, monkeypatch, width):
    name = "tuesday-greenhouse-2"
    (runs / "good").rename(runs / name)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = edge_sel("runs").out.splitlines()[:6]
    assert max(map(len, lines)) <= width
    (line,) = [line for line in lines if name in line]
    assert "shipped" in line and "%" in line
    monkeypatch.setenv("COLUMNS", "200")
    assert "source" in edge_sel("runs").out.splitlines()[0]


def test_one_run_may_be_named_itself(edge_sel, runs):
    assert [run["verdict"] for run in json.loads(edge_sel("runs", "runs/good", "--json").out)["runs"]] == ["shipped"]


def test_a_folder_without_runs_and_one_that_is_not_there(edge_sel, here):
    (here / "empty").mkdir()
    assert edge_sel("runs", "empty").out == "no runs in empty\n"
    missing = edge_sel("runs")
    assert missing.code == 2 and missing.out == "" and len(missing.err.splitlines()) == 1 and "runs" in missing.err
