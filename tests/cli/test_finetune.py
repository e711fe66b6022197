"""``edge-sel finetune``: with no argument, on a folder, for a machine to read."""

import json
import re
import shutil
import struct
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edge_sel.pack.builtin import builtin_pack
from edge_sel.pack.manifest import EVAL, MANIFEST, WEIGHTS
from edge_sel.pack.manifest_json import to_json
from edge_sel.power import MeterError, Reading
from edge_sel.power.find import OPENERS
from tests.cli.shell import PACK, block, run
from tests.edge.sessions import events, tree

FILES = {"run.json", "history.csv", "events.jsonl", "model.onnx", "weights.safetensors"}
SHORT = ["--plan", "bn", "--threads", 1]


def test_with_no_argument(here):
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


def test_json_is_all_there_is_on_stdout(here):
    result = run("finetune", "--json", "--out", "run", *SHORT, cwd=here)
    assert result.returncode == 0 and result.stderr == ""
    told = json.loads(result.stdout, parse_constant=pytest.fail)
    assert result.stdout.count("\n") == 1
    assert told == json.loads((here / "run" / "run.json").read_text())
    assert told["schema"] == 1 and told["stopped"] == "done" and told["run"] == "run"
    assert told["energy"]["source"] in ("measured", "modelled")
    assert all(epoch["energy_source"] in ("measured", "modelled") for epoch in told["epochs"])


def test_without_torch_and_the_other_big_ones(here, tmp_path):
    """The whole default run, on a device where only edge-sel's own dependencies are."""
    names = ("torch", "torchvision", "onnxscript", "sklearn", "scipy", "pandas", "matplotlib", "hypothesis", "pytest")
    path = block(tmp_path / "blocked", *names)
    probe = run("-c", "import torch", cwd=here, command=[sys.executable], PYTHONPATH=path)
    assert "No module named 'torch'" in probe.stderr
    result = run("finetune", "--json", cwd=here, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["shipped"] is True


def test_same_seed_same_weights(edge_sel, here, digits_folder):
    arguments = ["finetune", PACK, "--data", digits_folder, "--epochs", 2, "--threads", 1, "--json"]
    arguments += ["--prefix-precision", "fp32"]
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
    assert "the original model ships" in result.out and "the original model ships" in result.err
    assert "full did not lower the validation loss: undone" in result.err
    assert "held back as the validation set" in result.err and "valid." in result.out
    assert "guard" not in result.out + result.err
    told = json.loads(edge_sel("finetune", PACK, "--data", digits_folder, *arguments, "--resume", "--json").out)
    assert told["shipped"] is False


def test_an_automatic_plan_tells_what_it_decides(edge_sel, here, digits_folder):
    result = edge_sel(
        "finetune", PACK, "--data", digits_folder, "--plan", "auto", "--threads", 1, "--gate", "off", "--out", "run"
    )
    assert result.code == 0, result.err
    told = events(here / "run")
    decided = [(event["plan"], event["why"]) for event in told if event["event"] == "rung"]
    ends = [("ends", event["why"]) for event in told if event["event"] == "climbed"]
    shown = [line for line in result.err.splitlines() if line.startswith("ladder: ")]
    assert shown == [f"ladder: {plan} ({why})" for plan, why in [*decided, *ends]]
    assert decided[0][0] == "bn" and len(ends) == 1
    summary = json.loads((here / "run" / "run.json").read_text())
    assert summary["plan"] == "auto"
    decisions = [(decision["plan"] or "ends", decision["why"]) for decision in summary["decisions"]]
    assert decisions == [*decided, *ends]


def test_an_automatic_plan_makes_do_with_what_the_pack_has(edge_sel, here, digits_folder):
    opened = builtin_pack()
    lesser = replace(opened.manifest, plans={n: opened.manifest.plans[n] for n in ("bn", "head")})
    files = [plan[name] for plan in map(vars, lesser.plans.values()) for name in ("train", "score")]
    prefix = opened.prefix("head")
    files += [prefix.graph, prefix.int8.graph]
    kept = {name: opened.graph(name) for name in (EVAL, WEIGHTS, *files)}
    lesser = replace(lesser, files={name: opened.manifest.files[name] for name in kept})
    (here / "pack").mkdir()
    for name, content in {**kept, MANIFEST: to_json(lesser).encode()}.items():
        (here / "pack" / name).write_bytes(content)
    result = edge_sel("finetune", "pack", "--data", digits_folder, "--plan", "auto", "--out", "run", "--json")
    assert result.code == 0, result.err
    plans = [decision["plan"] for decision in json.loads(result.out)["decisions"]]
    assert plans[0] == "bn" and plans[-1] is None and set(plans[1:-1]) <= {"head"}


def test_an_epoch_that_trained_nothing_can_be_shown(edge_sel, digits_folder):
    """Few images and a large batch: the images of the first epoch wait for the second."""
    arguments = ["finetune", PACK, "--data", digits_folder, "--plan", "affine", "--epochs", 2, "--batch-size", 512]
    result = edge_sel(*arguments, "--out", "run")
    assert result.code == 0, result.err
    assert "nan" not in result.out


@pytest.mark.parametrize("out", ["run[final]", "a[/b]", "[bold]:smile:"])
def test_names_are_shown_as_they_are(out, edge_sel, here, digits_folder):
    """Square brackets are markup to the library that prints."""
    result = edge_sel("finetune", "--out", out, *SHORT)
    assert result.code == 0 and result.out.rstrip().endswith(f"files: {out}")


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


def test_a_meter_that_is_lost(edge_sel, monkeypatch):
    """Said once, and not turned into a number; the run goes on."""
    monkeypatch.setitem(OPENERS, "psutil", Dying)
    result = edge_sel("finetune", "--meter", "psutil", "--out", "run", *SHORT)
    assert result.code == 0
    assert result.err.count("psutil is lost") == 1 and "it was unplugged" in result.err
    assert "energy: unavailable (it was unplugged)" in result.out


def test_settings_come_from_all_layers(edge_sel, here, monkeypatch):
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


def test_test_images(edge_sel, digits_folder):
    arguments = ["finetune", PACK, "--data", digits_folder, "--test", digits_folder, "--out", "run", "--json", *SHORT]
    told = json.loads(edge_sel(*arguments).out)
    assert told["accuracy"]["on"] == "test" and told["images"]["test"] == 120
    assert told["source"] == str(digits_folder)


def test_resuming_a_finished_run(edge_sel, here):
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


def test_new_classes(edge_sel, here, digits_folder):
    import shutil

    shutil.copytree(digits_folder, "data")
    for number in range(6):
        (here / "data" / "star").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (200, number, 30)).save(here / "data" / "star" / f"{number}.png")
    arguments = ["finetune", PACK, "--data", "data", "--out", "run", "--new-classes", "extend", "--json", *SHORT]
    told = json.loads(edge_sel(*arguments).out)
    assert told["classes"] == [*map(str, range(10)), "star"]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png():
    """A few bytes that claim 100,000 x 100,000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.fixture
def mixed(tmp_path, digits_folder):
    """Good images in every odd format, and among them six files that are none."""
    import shutil

    root = tmp_path / "mixed"
    shutil.copytree(digits_folder, root)
    picture = Image.open(next((root / "7").iterdir())).convert("RGB")
    grey = np.asarray(picture.convert("L"), np.uint16) * 257
    picture.convert("CMYK").save(root / "7" / "cmyk.jpg")
    Image.fromarray(grey).save(root / "7" / "sixteen.png")
    picture.quantize(8).save(root / "7" / "palette.png")
    other = Image.new("P", picture.size)
    picture.quantize(8).save(root / "7" / "moving.gif", save_all=True, append_images=[other, other], duration=50)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.resize((64, 48)).save(root / "7" / "turned.jpg", exif=exif)
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    large.save(root / "7" / "whole.jpg")
    content = (root / "7" / "whole.jpg").read_bytes()
    (root / "1" / "truncated.jpg").write_bytes(content[: len(content) // 3])
    (root / "2" / "text.jpg").write_text("this is no picture")
    (root / "3" / "empty.png").write_bytes(b"")
    (root / "4" / "huge.png").write_bytes(huge_png())
    (root / "5" / "notes.txt").write_text("labels were checked twice")
    picture.save(root / "loose.png")
    (root / "Thumbs.db").write_bytes(b"clutter")
    return root


def test_a_mixed_folder(edge_sel, mixed):
    before = tree(mixed)
    result = edge_sel("finetune", PACK, "--data", mixed, "--out", "run", "--json", *SHORT)
    assert result.code == 0, result.err
    told = json.loads(result.out)
    skipped = {entry["path"]: entry["reason"] for entry in told["skipped_images"]}
    assert skipped.keys() == {
        "1/truncated.jpg", "2/text.jpg", "3/empty.png", "4/huge.png", "5/notes.txt", "loose.png",
    }  # fmt: skip
    assert all(skipped.values())
    assert "truncated" in skipped["1/truncated.jpg"] and "empty" in skipped["3/empty.png"]
    assert "megapixels" in skipped["4/huge.png"]
    assert told["images"]["train"] + told["images"]["guard"] == 120 + 6
    assert tree(mixed) == before
    shown = edge_sel("finetune", PACK, "--data", mixed, "--out", "again", *SHORT)
    assert "skipped 6 files" in shown.out


# The other commands


def test_evaluate(edge_sel, here, digits_folder):
    assert edge_sel("finetune", PACK, "--data", digits_folder, "--out", "run", "--json", *SHORT).code == 0
    figures = {}
    for name, extra in (("before", []), ("after", ["--weights", "run/weights.safetensors"])):
        result = edge_sel("evaluate", PACK, "--data", digits_folder, "--json", *extra)
        assert result.code == 0 and result.err == ""
        figures[name] = json.loads(result.out)
    assert figures["before"]["accuracy"] < figures["after"]["accuracy"]
    assert figures["after"]["images"] == 120 and set(figures["after"]["classes"]) == set("0123456789")
    shown = edge_sel("evaluate", PACK, "--data", digits_folder)
    assert f"accuracy {100 * figures['before']['accuracy']:.2f} % on 120 images" in shown.out


def test_evaluate_an_extended_model(edge_sel, here, digits_folder):
    shutil.copytree(digits_folder, "images")
    shutil.copytree("images/3", "images/three")
    extended = ("--data", "images", "--new-classes", "extend", "--out", "run", "--json", *SHORT)
    assert edge_sel("finetune", PACK, *extended).code == 0
    result = edge_sel("evaluate", PACK, "--data", "images", "--json", "--weights", "run/weights.safetensors")
    assert result.code == 0 and "three" in json.loads(result.out)["classes"]
    assert edge_sel("evaluate", PACK, "--data", "images").code == 4  # the pack itself does not know the class


def test_inspect_and_verify(edge_sel):
    told = json.loads(edge_sel("pack", "inspect", PACK, "--json").out)
    assert told["schema"] == 1 and len(told["model"]["classes"]) == 10
    shown = edge_sel("pack", "inspect", PACK).out
    assert all(plan in shown for plan in told["plans"])
    verified = edge_sel("pack", "verify", PACK)
    assert verified.code == 0 and "every hash and graph is good" in verified.out


def test_version(edge_sel):
    from edge_sel import __version__

    assert edge_sel("--version").out.strip() == f"edge-sel, version {__version__}"
