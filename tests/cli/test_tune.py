"""``edge-sel tune``, and what ``finetune`` makes of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sel.api import round as api_round
from edge_sel.cli.tune import trained_plans
from edge_sel.config.profiles import detect_profile
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.reader import builtin_pack
from edge_sel.power.resources import usable_cores
from edge_sel.tuning import Candidate, Cost, machine, tuning_file, write_tuning
from tests.cli.shell import PACK, USAGE, refused
from tests.edge.sessions import outcome

BEST, OTHER = Candidate(1, False, 64), Candidate(1, False, 16)
RUN = ["finetune", "--epochs", 1, "--validation-fraction", 0.5, "--json"]


@pytest.fixture
def cache(here, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    return here / "cache"


def remember(best: Candidate, **other: str) -> Path:
    """As if ``best`` had been found to be by far the best for the built-in pack."""
    path = tuning_file(builtin_pack().digest, "ort", os.environ)
    costs = {Candidate(1, False, size): Cost(1.0, 0.1, 0.1, 3) for size in (16, 32, 64)}
    costs[best] = Cost(0.1, 0.1, 0.1, 3)
    here = machine(detect_profile(), usable_cores()) | other
    write_tuning(path, {"first": costs}, here, {"name": "psutil", "source": "modelled"})
    return path


def settings(out: Path) -> dict[str, tuple[object, str]]:
    stored = json.loads((out / "run.json").read_text())["settings"]
    return {key: (stored[key]["value"], stored[key]["origin"]) for key in Candidate._fields}


@pytest.mark.slow
def test_tune_measures_and_finetune_uses_it(edge_sel, here, cache):
    summary = json.loads(edge_sel("tune", "--seconds", 0.03, "--json").out, parse_constant=pytest.fail)
    assert summary["schema"] == 1 and summary["engine"] == "ort" and list(summary["plans"]) == ["last2"]
    assert summary["meter"]["source"] in ("measured", "modelled")
    rows = summary["plans"]["last2"]
    assert {row["batch_size"] for row in rows} == {16, 32, 64} and {row["threads"] for row in rows} >= {1}
    assert all(row["energy_j"] > 0 and row["time_s"] > 0 and row["rounds"] >= 1 for row in rows)
    assert Path(summary["file"]).is_relative_to(cache) and Path(summary["file"]).is_file()
    result = edge_sel(*RUN, "--out", "run")
    assert result.code == 0 and result.err == ""
    assert settings(here / "run") == {key: (value, "tuned") for key, value in summary["choice"].items()}


def test_of_auto_the_head_is_measured_only_where_it_takes_steps():
    pack = builtin_pack()
    plans = {name: replace(info, backbone="") for name, info in pack.manifest.plans.items()}
    without = pack.with_manifest(replace(pack.manifest, plans=plans))
    assert trained_plans(pack, ("auto",)) == ["last2"], "no gains were rehearsed: not the whole network"
    assert trained_plans(without, ("auto",)) == ["head", "last2"], "such a pack has no closed form"
    assert trained_plans(pack, ("head", "bn")) == ["head"], "what is named is measured"


@pytest.mark.slow
def test_what_a_person_reads(edge_sel, cache):
    shown = edge_sel("tune", "--seconds", 0.03, "--plan", "head", "--plan", "bn")
    assert shown.code == 0
    assert "head, one sample: gross joules m" in shown.out and "by processor time" not in shown.out
    assert "chosen" in shown.out and "finetune will use threads" in shown.out and str(cache) in shown.out
    assert "bn, one" not in shown.out
    assert "round 3 of 3" in shown.err
    run = edge_sel("finetune", "--plan", "head", "--epochs", 1, "--out", "run")
    assert "tuned by `edge-sel tune`: threads" in run.err


def test_without_a_meter_it_says_so(edge_sel, cache, monkeypatch):
    from edge_sel.power.find import METER_KINDS
    from edge_sel.power.meter import MeterError

    def closed(profile):
        raise MeterError("not here")

    for name in METER_KINDS:
        monkeypatch.setattr(METER_KINDS[name], "open", closed)
    shown = edge_sel("tune", "--seconds", 0.03, "--plan", "head")
    assert shown.code == 0 and "no meter works here: compared by processor time" in shown.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plan", "bn"], ["bn", "first"]),
        (["--plan", "ridge"], ["no plan to measure: ridge", "first"]),
        (["--plan", "lst"], ["lst", "last"]),
        (["nowhere.edgepack"], ["nowhere.edgepack"]),
        (["--meter", "nope"], ["nope"]),
    ],
)
def test_mistakes_are_one_line(edge_sel, cache, arguments, words):
    result = edge_sel("tune", *arguments)
    refused(result, result.code, *words)
    assert result.code in (USAGE, 4)


@pytest.mark.slow
def test_whatever_the_user_gives_overrules(edge_sel, here, cache, monkeypatch):
    remember(BEST)
    assert edge_sel(*RUN, "--out", "tuned").code == 0
    assert settings(here / "tuned") == {
        "threads": (1, "tuned"), "spinning": (False, "tuned"), "batch_size": (64, "tuned"),
    }  # fmt: skip
    assert edge_sel(*RUN, "--out", "flag", "--batch-size", 20).code == 0
    assert settings(here / "flag")["batch_size"] == (20, "flag")
    assert settings(here / "flag")["threads"] == (1, "tuned")
    monkeypatch.setenv("EDGE_SEL_THREADS", "1")
    monkeypatch.setenv("EDGE_SEL_SPINNING", "true")
    made = []
    monkeypatch.setattr(api_round, "choose_engine", lambda *how, **more: made.append((how, more)) or OrtEngine(1))
    assert edge_sel(*RUN, "--out", "env").code == 0
    ((how, more),) = made
    assert how == ("auto", 1) and more["spinning"] is True
    assert settings(here / "env")["spinning"] == (True, "env:EDGE_SEL_SPINNING")
    assert settings(here / "env")["batch_size"][1].startswith(("profile:", "default")), "nothing like it was measured"


@pytest.mark.slow
def test_another_pack_or_engine_is_not_concerned(edge_sel, here, cache, digits_folder):
    path = remember(BEST)
    path.rename(path.with_name("0123456789abcdef-ort.json"))
    assert edge_sel(*RUN, "--out", "run").code == 0
    assert not any(at == "tuned" for _, at in settings(here / "run").values())
    remember(BEST)
    assert edge_sel(*RUN, "--out", "torch", "--engine", "torch", "--plan", "first").code == 0
    assert not any(at == "tuned" for _, at in settings(here / "torch").values())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("harm", ["damaged", "foreign"])
def test_a_file_of_no_use_is_told_in_one_line_and_left_alone(edge_sel, here, cache, harm):
    path = remember(BEST, **({"processor": "another"} if harm == "foreign" else {}))
    if harm == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    content = path.read_bytes()
    result = edge_sel(*RUN[:-1], "--out", "run")
    assert result.code == 0
    (line,) = [line for line in result.err.splitlines() if "tuning" in line]
    assert line.startswith("tuning ignored, ") and str(path) in line and "edge-sel tune" in line
    assert path.read_bytes() == content
    assert not any(at == "tuned" for _, at in settings(here / "run").values())


@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.parametrize("began", ["tuned", "untuned"])
@pytest.mark.parametrize("then", ["tuned otherwise", "untuned"])
def test_a_resumed_run_keeps_what_it_began_with(edge_sel, here, cache, digits_folder, began, then):
    """Whatever is measured, lost or damaged between a run and its continuation, the end is the same to the bit."""
    arguments = ["finetune", PACK, "--data", digits_folder, "--epochs", 2, "--gate", "off", "--json"]
    arguments += ["--feature-store", "off"]  # else the second one finds what the first has computed
    if began == "tuned":
        path = remember(BEST)
    assert edge_sel(*arguments, "--out", "whole").code == 0
    assert edge_sel(*arguments, "--out", "run", "--deadline", "1ms").code == 75
    if then == "tuned otherwise":
        remember(OTHER)
        (here / "run" / "run.json").unlink()  # as if it had been killed
    elif began == "tuned":
        path.write_text("{")
    assert edge_sel(*arguments, "--out", "run", "--resume").code == 0
    assert settings(here / "run") == settings(here / "whole")
    assert {at for _, at in settings(here / "run").values()} & {"tuned"} == ({"tuned"} if began == "tuned" else set())
    assert outcome(here / "run") == outcome(here / "whole")
    threads, _, size = (value for value, _ in settings(here / "run").values())
    again = edge_sel(*arguments, "--out", "run", "--resume", "--threads", threads, "--batch-size", size)
    assert again.code == 0 and json.loads(again.out)["stopped"] == "done"
