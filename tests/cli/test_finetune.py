"""``edge-sel finetune``: with no argument, on a folder, for a machine to read."""

import json
import re
import shlex
from dataclasses import replace

import pytest

from edge_sel.pack.manifest import EVAL, MANIFEST, WEIGHTS
from edge_sel.pack.manifest_json import to_json
from edge_sel.pack.reader import builtin_pack
from edge_sel.power.find import METER_KINDS
from edge_sel.power.meter import MeterError, Reading
from tests.cli.shell import PACK, run
from tests.edge.sessions import events, tree

FILES = {"run.json", "history.csv", "events.jsonl", "journal.jsonl", "power.csv", "model.onnx", "weights.safetensors",
         "learnt.safetensors"}  # fmt: skip
SHORT = ["--plan", "bn", "--threads", 1]


def test_with_no_argument_it_trains_on_the_built_in_images(here):
    result = run("finetune", cwd=here)
    assert result.returncode == 0, result.stderr
    (out,) = (here / "runs").iterdir()
    assert {path.name for path in out.iterdir()} == FILES
    assert list(here.iterdir()) == [here / "runs"]
    before, after = map(float, re.search(r"([\d.]+) ?% before, ([\d.]+) ?% after", result.stdout).groups())
    assert after > before + 30
    energy = re.search(r"energy: (.*)", result.stdout)[1]
    assert re.match(r"[\d.]+ m?J (measured|modelled) by \w+", energy)
    assert str(out.relative_to(here)) in result.stdout
    recorded = json.loads((out / "run.json").read_text())
    assert recorded["accuracy"]["after"] == pytest.approx(after / 100, abs=1e-3)
    assert len(re.findall(r"^epoch \d+ ", result.stderr, re.MULTILINE)) == len(recorded["epochs"])


def test_json_is_all_there_is_on_stdout(edge_sel, here):
    result = edge_sel("finetune", "--json", "--out", "run", *SHORT)
    assert result.code == 0 and result.err == ""
    summary = json.loads(result.out, parse_constant=pytest.fail)
    assert result.out.count("\n") == 1
    assert summary == json.loads((here / "run" / "run.json").read_text())
    assert summary["schema"] == 1 and summary["stopped"] == "done" and summary["run"] == "run"
    assert summary["energy"]["source"] in ("measured", "modelled")
    assert all(epoch["energy_source"] in ("measured", "modelled") for epoch in summary["epochs"])


def test_the_same_seed_gives_the_same_weights(edge_sel, here, digits_folder):
    arguments = ["finetune", PACK, "--data", digits_folder, "--epochs", 2, "--threads", 1, "--json"]
    arguments += ["--backbone-precision", "fp32"]
    for out in ("one", "two"):
        assert edge_sel(*arguments, "--out", out).code == 0
    assert edge_sel(*arguments, "--out", "other", "--seed", 1).code == 0
    one, two, other = ((here / out / "weights.safetensors").read_bytes() for out in ("one", "two", "other"))
    assert one == two != other


def test_a_run_that_made_it_worse_says_so(edge_sel, digits_folder):
    arguments = [
        "--plan",
        "full",
        "--epochs",
        1,
        "--learning-rate",
        10,
        "--gate",
        "off",
        "--threads",
        1,
        "--out",
        "run",
    ]
    result = edge_sel("finetune", PACK, "--data", digits_folder, *arguments)
    assert result.code == 0
    assert "% before; the original model stays" in result.out and "the original model stays" in result.err
    assert "full did not improve the model on the validation set: undone" in result.err
    assert "evidence: nothing that was tried made it better" in result.out
    assert "held out for validation" in result.err and "valid." in result.out
    assert "validation_" not in result.out + result.err
    summary = json.loads(edge_sel("finetune", PACK, "--data", digits_folder, *arguments, "--resume", "--json").out)
    assert summary["shipped"] is False


def test_an_automatic_plan_tells_what_it_decides(edge_sel, here, digits_folder):
    result = edge_sel(
        "finetune", PACK, "--data", digits_folder, "--plan", "auto", "--threads", 1, "--gate", "off", "--out", "run"
    )
    assert result.code == 0, result.err
    found = events(here / "run")
    decided = [(event["plan"], event["why"]) for event in found if event["event"] == "stage_begun"]
    ends = [("ends", event["why"]) for event in found if event["event"] == "stages_ended"]
    shown = [line for line in result.err.splitlines() if line.startswith("schedule: ")]
    assert shown == [f"schedule: {plan} ({why})" for plan, why in [*decided, *ends]]
    assert decided[0][0] == "closed_form" and len(ends) == 1
    summary = json.loads((here / "run" / "run.json").read_text())
    assert summary["plan"] == "auto"
    decisions = [(decision["plan"] or "ends", decision["why"]) for decision in summary["decisions"]]
    assert decisions == [*decided, *ends]


def test_an_automatic_plan_makes_do_with_what_the_pack_has(edge_sel, here, digits_folder):
    opened = builtin_pack()
    lesser = replace(opened.manifest, plans={n: opened.manifest.plans[n] for n in ("bn", "head")})
    files = [plan[name] for plan in map(vars, lesser.plans.values()) for name in ("train", "score")]
    backbone = opened.backbone("head")
    files += [backbone.graph, backbone.int8.graph]
    kept = {name: opened.graph(name) for name in (EVAL, WEIGHTS, *files)}
    lesser = replace(lesser, files={name: opened.manifest.files[name] for name in kept})
    (here / "pack").mkdir()
    for name, content in {**kept, MANIFEST: to_json(lesser).encode()}.items():
        (here / "pack" / name).write_bytes(content)
    result = edge_sel("finetune", "pack", "--data", digits_folder, "--plan", "auto", "--out", "run", "--json")
    assert result.code == 0, result.err
    plans = [decision["plan"] for decision in json.loads(result.out)["decisions"]]
    assert plans == ["closed_form", None], "the head has been fitted, and there is no body"


def test_as_good_as_can_be_or_good_enough(edge_sel, here, digits_folder):
    """run.json tells what each training stage was expected to give and to take, and what came."""
    given = ("finetune", PACK, "--data", digits_folder, "--threads", 1, "--json", "--out")
    best = json.loads(edge_sel(*given, "best", "--min-gain-per-kj", "0").out)
    assert best["settings"]["min_gain_per_kj"]["value"] == 0
    first, second, *_ = best["decisions"]
    assert "expected" not in first and {*first["came"]} == {*second["expected"]} == {"gain", "energy_j"}
    assert second["expected"]["gain"] > 0
    enough = json.loads(edge_sel(*given, "enough", "--target-accuracy", "30%").out)
    assert [decision["plan"] for decision in enough["decisions"]] == ["closed_form", None]
    assert "30.0% is good enough" in enough["decisions"][-1]["why"]


@pytest.mark.parametrize("min_gain_per_kj", ["-1", "most", "nan", "inf"])
def test_a_least_gain_that_is_none(min_gain_per_kj, edge_sel, here):
    result = edge_sel("finetune", "--min-gain-per-kj", min_gain_per_kj, "--out", "run")
    assert (
        result.code == 2
        and "min_gain_per_kj" in result.err
        and "such as 10" in result.err
        and not (here / "run").exists()
    )


def test_an_epoch_that_trained_nothing_can_be_shown(edge_sel, here, digits_folder):
    """Few images and a large batch: the images of the first epoch wait for the second."""
    arguments = ["finetune", PACK, "--data", digits_folder, "--plan", "affine", "--epochs", 2, "--batch-size", 512]
    result = edge_sel(*arguments, "--out", "run")
    assert result.code == 0, result.err
    first, _ = json.loads((here / "run" / "run.json").read_text())["epochs"]
    assert first["trained"] == 0 and first["train_loss"] is None
    assert "epoch 1 " in result.err and "nan" not in result.out + result.err


@pytest.mark.sampled(2)
@pytest.mark.parametrize("out", ["run[final]", "a[/b]", "[bold]:smile:", "my run"])
def test_names_are_shown_as_they_are(out, edge_sel, here, digits_folder):
    """Square brackets are markup to the library that prints."""
    result = edge_sel("finetune", "--out", out, *SHORT)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-2:] == [f"files: {out}", f"a page about it: edge-sel report {shlex.quote(out)}"]


class Dying:
    """A meter that answers some times, and never again."""

    name, source, min_window_s = "psutil", "modelled", 0.0

    def __init__(self, profile):
        self.reads = 0

    def read(self, now_s):
        self.reads += 1
        if self.reads > 8:
            raise MeterError("it was unplugged", "plug it in")
        return Reading(now_s, float(self.reads), None)

    def close(self):
        pass


def test_a_meter_that_is_lost_is_told_once_and_its_joules_are_unavailable(edge_sel, monkeypatch):
    """Said once, and not turned into a number; the run goes on."""
    monkeypatch.setattr(METER_KINDS["psutil"], "open", Dying)
    result = edge_sel("finetune", "--meter", "psutil", "--out", "run", *SHORT)
    assert result.code == 0
    assert result.err.count("psutil is lost") == 1 and "it was unplugged" in result.err
    assert "energy: unavailable (it was unplugged)" in result.out


def test_a_flag_overrules_the_environment_and_that_the_file(edge_sel, here, monkeypatch):
    (here / "mine.toml").write_text("plan = 'bn'\nseed = 3\nbatch_size = 48\n")
    monkeypatch.setenv("EDGE_SEL_SEED", "4")
    monkeypatch.setenv("EDGE_SEL_THREADS", "1")
    result = edge_sel("finetune", "--config", "mine.toml", "--profile", "raspberry-pi-5", "--threads", 2, "--json")
    settings = json.loads(result.out)["settings"]
    assert settings["plan"] == {"value": "bn", "origin": "file:mine.toml"}
    assert settings["seed"] == {"value": 4, "origin": "env:EDGE_SEL_SEED"}
    assert settings["threads"] == {"value": 2, "origin": "flag"}
    assert settings["batch_size"] == {"value": 48, "origin": "file:mine.toml"}
    assert settings["gate"]["origin"] == "default"


def test_accuracy_is_told_on_the_test_images_where_there_are_any(edge_sel, digits_folder):
    arguments = ["finetune", PACK, "--data", digits_folder, "--test", digits_folder, "--out", "run", "--json", *SHORT]
    result = json.loads(edge_sel(*arguments).out)
    assert result["accuracy"]["on"] == "test" and result["images"]["test"] == 120
    assert result["source"] == str(digits_folder)


def test_resuming_a_finished_run_changes_nothing(edge_sel, here):
    first = edge_sel("finetune", "--out", "run", "--json", *SHORT)
    before = tree(here / "run")
    again = edge_sel("finetune", "--out", "run", "--json", "--resume", *SHORT)
    assert again.code == 0 and again.out == first.out
    assert tree(here / "run") == before
    shown = edge_sel("finetune", "--out", "run", "--resume", *SHORT)
    assert shown.code == 0 and "epoch 1" not in shown.err


def test_resume_with_nothing_there_starts(edge_sel, here):
    assert edge_sel("finetune", "--out", "run", "--resume", *SHORT).code == 0
    assert {path.name for path in (here / "run").iterdir()} == FILES
