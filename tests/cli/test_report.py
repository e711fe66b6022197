"""``edge-sel report``, and ``--report`` of the commands that make what it shows."""

import json

import pytest

from tests.cli.shell import SETUP, USAGE, block, refused, run

RUN = ["finetune", "--plan", "closed_form", "--threads", 1, "--meter", "psutil", "--profile", "cloud-vm"]


def test_a_run_its_report_and_the_offer(edge_sel, here, sketched):
    result = edge_sel(*RUN, "--out", "a")
    assert result.code == 0 and "a page about it: edge-sel report a" in result.out
    assert edge_sel(*RUN, "--out", "b", "--report").out.rstrip().endswith("report: b/report.html")
    assert (here / "b" / "report.html").stat().st_size > 20_000
    made = edge_sel("report", "a", "--json")
    assert json.loads(made.out) == {"schema": 1, "out": "report.html", "bytes": (here / "report.html").stat().st_size}
    assert edge_sel("report", ".", "--out", "both.html").code == 0
    assert "2 runs side by side" in (here / "both.html").read_text()


def test_json_stays_one_object(edge_sel, here, sketched):
    result = edge_sel(*RUN, "--out", "a", "--report", "--json")
    assert json.loads(result.out)["stopped"] == "done" and (here / "a" / "report.html").exists()


def test_the_reference_writes_its_own(edge_sel, here, sketched):
    result = edge_sel("reference", "random-10", "--smoke", "--out", "ref", "--report", "--meter", "psutil")
    assert result.code == 0 and result.out.rstrip().endswith("report: ref/report.html")
    assert "What was claimed" in (here / "ref" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no run is named"]),
        (["nowhere"], ["nowhere"]),
        (["--reference", "nowhere"], ["nowhere"]),
        (["."], ["no run of `edge-sel finetune`"]),
    ],
)
def test_mistakes_are_one_line(edge_sel, here, arguments, words):
    result = edge_sel("report", *arguments)
    refused(result, USAGE, *words)
    assert not list(here.iterdir())


def test_what_is_missing_or_in_the_way_is_told_before_the_work(edge_sel, here, tmp_path):
    without = block(tmp_path / "site", "matplotlib")
    result = run(*RUN, "--out", "a", "--report", cwd=here, PYTHONPATH=without)
    assert result.returncode == SETUP and "pip install 'edge-sel[report]'" in result.stderr
    assert not (here / "a").exists()
    (here / "b").mkdir()
    (here / "b" / "report.html").write_text("mine")
    refused(edge_sel(*RUN, "--out", "b", "--report"), USAGE, "not a report")
    assert (here / "b" / "report.html").read_text() == "mine"
