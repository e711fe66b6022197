"""A run that was cut off ends like one that was not, and nothing that exists is lost."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open

from edge_sel.errors import SetupError, UsageError
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.reference.epoch import summarise_run, total
from edge_sel.reference.results import RunFolder, list_results, mean_std
from edge_sel.reference.suite import run_suite
from edge_sel.reference.systems import SYSTEMS, Setup, SuiteOptions
from edge_sel.reference.trainer import Stopped, SystemTrainer
from tests.reference.conftest import COLOUR_SETS, SMALL_BATCHES

TIMED = ("time_s", "images_per_s", "temp_c")


@pytest.fixture
def suite(tmp_path, one_thread):
    def call(*names, out=tmp_path / "out", stop_after=None, **options):
        steps = iter(range(10**9))
        with EnergyRecorder(None, background=False, temperature=lambda: None) as recorder:
            return run_suite(
                [SYSTEMS[name] for name in names], lambda size: COLOUR_SETS, SuiteOptions(SMALL_BATCHES, "digits", out, device="cpu", **options),
                recorder, should_stop=lambda: stop_after is not None and next(steps) >= stop_after, listen=lambda event: None,
            )  # fmt: skip

    return call


def timeless(result):
    return [{key: value for key, value in row.items() if key not in TIMED} for row in result["rows"]]


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "name",
    ["lottery-ticket", "warmup-sel", "sel-v3", "fast-ast", "dihcl-beta", "infobatch", "selective-backprop", "fast"],
)
def test_resumed_is_the_same_as_uninterrupted(name, suite, tmp_path):
    whole = suite(name, out=tmp_path / "whole")[0]
    stopped = 0
    for after in (3, 4, 5, 7, 5, 6):
        try:
            suite(name, stop_after=after)
        except Stopped:
            stopped += 1
    assert stopped
    assert timeless(suite(name)[0]) == timeless(whole)


def test_a_finished_run_is_kept_and_its_checkpoint_gone(suite, tmp_path):
    first = suite("baseline", "ast")
    folder = tmp_path / "out" / "baseline" / "seed-0"
    assert sorted(path.name for path in folder.iterdir()) == ["history.csv", "run.json"]
    assert suite("baseline", "ast") == json.loads(json.dumps(first))
    assert [result["system"] for result in list_results(tmp_path / "out")] == ["ast", "baseline"]


def test_rows_have_the_published_columns_and_ours(suite, tmp_path):
    result = suite("sel-95")[0]
    lines = (tmp_path / "out/sel-95/seed-0/history.csv").read_text().splitlines()
    columns = lines[0].split(",")
    assert columns[:9] == [
        "epoch",
        "stage",
        "train_acc",
        "train_loss",
        "test_full",
        "test_100",
        "flops_T",
        "time_s",
        "sparsity",
    ]
    assert columns[9:12] == ["E_red", "C_red", "acc_red"]
    assert {"executed_flops_T", "energy_j", "energy_source", "power_w", "active_rate"} <= set(columns)
    assert len(lines) == 1 + result["summary"]["epochs"] == 1 + len(result["rows"])
    assert result["rows"][-1]["energy_source"] == "unavailable" and result["summary"]["energy_j"] is None
    assert result["environment"]["torch"] == torch.__version__ and result["label"].startswith("scale smoke")
    assert len(result["rows"]) > 1
    for before, after in pairwise(result["rows"]):
        assert after["flops_T"] > before["flops_T"] and after["executed_flops_T"] > before["executed_flops_T"]


def test_other_settings_do_not_touch_what_is_there(suite, tmp_path):
    suite("baseline")
    before = (tmp_path / "out/baseline/seed-0/run.json").read_bytes()
    with pytest.raises(UsageError, match=r"not what the run began with: setup: .*another --out"):
        suite("baseline", epochs=7)
    with pytest.raises(Stopped):
        suite("ast", stop_after=4)
    with pytest.raises(UsageError, match=r"not what the run began with: setup: .*another --out"):
        suite("ast", epochs=9)
    assert (tmp_path / "out/baseline/seed-0/run.json").read_bytes() == before


def test_a_full_gpu_is_one_line_and_loses_no_epoch(suite, monkeypatch):
    real, epochs = SystemTrainer.train_epoch, []

    def fills_up(self, epoch):
        epochs.append(epoch)
        if len(epochs) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, epoch)

    monkeypatch.setattr(SystemTrainer, "train_epoch", fills_up)
    with pytest.raises(SetupError, match=r"memory is full.*ast.*--model"):
        suite("ast")
    assert len(suite("ast")[0]["rows"]) == max(epochs) and epochs[:3] == [1, 2, 2]


def test_another_seed_trains_otherwise(suite):
    first, second = suite("ast", seeds=(0, 1))
    assert timeless(first) != timeless(second)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(suite, tmp_path):
    whole = suite("ast", out=tmp_path / "whole")[0]
    with pytest.raises(Stopped):
        suite("ast", stop_after=7)  # in the third epoch
    folder = RunFolder(tmp_path / "out", "ast", 0)
    newest_first = sorted(folder.path.glob("checkpoint-*.safetensors"), reverse=True)
    assert len(newest_first) == 2
    with safe_open(newest_first[0], framework="numpy") as file:  # a whole safetensors file, as its name says
        kinds = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
        assert kinds == {"model", "stepper", "memory"} and json.loads(file.metadata()["identity"])["system"] == "ast"
    for path, epochs in zip(newest_first, (1, None), strict=True):
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(bytes(damaged))
        found = folder.load()
        assert found is None if epochs is None else len(found[1]) == epochs
    assert timeless(suite("ast")[0]) == timeless(whole)
    assert sorted(path.name for path in folder.path.iterdir()) == ["history.csv", "run.json"]


def test_a_missing_joule_makes_the_sum_unavailable():
    assert total([{"energy_j": 1.0}, {"energy_j": None}], "energy_j") is None
    assert total([{"energy_j": 1.0}, {"energy_j": 2.0}], "energy_j") == 3.0
    assert (
        mean_std([1.0, None]) is None
        and mean_std([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
        and mean_std([5.0]) == (5.0, None)
    )


def test_a_summary_of_different_sources_says_so(suite):
    rows = suite("baseline")[0]["rows"]
    mixed = [dict(rows[0], energy_source="measured"), dict(rows[1], energy_source="modelled")]
    assert summarise_run(mixed)["energy_source"] == "mixed: measured, modelled"


def test_models_come_with_their_first_weights_named(suite):
    assert suite("baseline", weights="random")[0]["weights"] == "random"


def test_imagenet_weights_fit_except_stem_and_head():
    from edge_sel.models.registry import build
    from edge_sel.reference.model import start_model, take_torchvision_resnet18

    ours = build("resnet18-cifar", 10, (32, 32))
    theirs = {}
    for name, value in build("resnet18-cifar", 1000, (32, 32)).state_dict().items():
        name = (
            name.replace("stages.3.", "layer4.")
            .replace("stages.2.", "layer3.")
            .replace("stages.1.", "layer2.")
            .replace("stages.0.", "layer1.")
        )
        name = name.replace("shortcut", "downsample").replace(".norm", ".bn").replace("head.", "fc.")
        theirs[name.replace("stem.conv.", "conv1.").replace("stem.bn.", "bn1.")] = value
    theirs["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    theirs["layer4.1.bn2.bias"] = torch.full((512,), 7.0)
    assert take_torchvision_resnet18(ours, theirs) == ["head", "stem.conv"]
    assert ours.state_dict()["stages.3.1.norm2.bias"].eq(7).all()
    _model, word = start_model(Setup("resnet18-cifar", 1, imagenet=True), 10, (32, 32), "random")
    assert word == "random"


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_runs_at_smoke_scale(name, suite):
    result = suite(name)[0]
    summary = result["summary"]
    assert all(row["train_loss"] is not None and row["executed_flops_T"] > 0 for row in result["rows"])
    assert summary["epochs"] == len(result["rows"]) >= 2 and 0 <= summary["test_full"] <= 1
    assert summary["per_class"].keys() == {"red", "green", "blue"}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
