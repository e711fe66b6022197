"""Models of a user's own file, with weights of their own; and what is said before any image is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from edge_sel.cli import export as command
from edge_sel.data.dataset import ImageSet
from edge_sel.data.shifts import write_folder
from edge_sel.errors import BadInputError, EdgeSelError, GraphError, UsageError
from edge_sel.graphs.rules.registry import RULES
from edge_sel.models import registry
from edge_sel.pack.reader import open_pack
from edge_sel.server.export import export_pack
from edge_sel.server.source.base import WarmupInfo, read_classes
from edge_sel.server.source.open import Asked, open_source
from edge_sel.server.source.torch_model import from_module
from tests.server.conftest import CLASSES, NOW, noise_images
from tests.server.endings import ENDINGS, settled

FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.classifier = nn.Linear(12, classes)

    def forward(self, x):
        features = self.body(self.stem(x)).mean((2, 3))
        return self.classifier(nn.functional.dropout(features, 0.5, self.training))  # no layer that could be found

def make_model(classes=3):
    torch.manual_seed(0)
    return Net(classes)

def of_three():
    return make_model()

def detector():
    return nn.Conv2d(3, 4, 1)

def text():
    return "no module"

def broken():
    raise RuntimeError("first line\\nsecond line")
"""
ASKED = Asked(image_size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3, folders=CLASSES)


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(FILE)
    return tmp_path / "net.py"


def asked(**changes):
    return Asked(**{**vars(ASKED), **changes})


def made(net, classes=3):
    spec = {}
    exec(compile(net.read_text(), str(net), "exec"), spec)
    return spec["make_model"](classes)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("function", ("make_model", "of_three"))
def test_a_function_of_a_users_file_becomes_a_pack(function, net, one_thread, tmp_path):
    source = open_source(f"{net}:{function}", ASKED)
    manifest = export_pack(source, noise_images(24), tmp_path / "pack", now=NOW)
    assert {"bn", "head", "last", "full"} <= manifest.plans.keys() and manifest.model.name == f"net.py:{function}"
    weights = open_pack(tmp_path / "pack").weights()
    expected = made(net).state_dict()
    assert all(np.array_equal(weights[name], expected[name].numpy()) for name in weights.keys() & expected.keys())
    assert not any(weights[name].any() for name in weights.keys() - expected.keys()), "a deep head of zeros"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("suffix", ("pth", "safetensors", "wrapped.pth", "parallel.pt"))
def test_weights_of_a_file_are_used(suffix, net, tmp_path):
    torch.manual_seed(1)
    state = {n: torch.randn(v.shape) if v.is_floating_point() else v for n, v in made(net, 5).state_dict().items()}
    path = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    elif suffix == "wrapped.pth":
        torch.save({"epoch": 3, "model_state_dict": state}, path)
    else:
        torch.save({f"module.{n}": v for n, v in state.items()} if "parallel" in suffix else state, path)
    names = ("a", "b", "c", "d", "e")
    source = open_source(f"{net}:make_model", asked(weights=path, folders=names))
    assert source.info.classes == names and not source.new_head
    own = {name: value for name, value in source.weights.items() if not name.startswith("deep_head")}
    assert all(np.array_equal(value, state[name].numpy()) for name, value in own.items())
    with pytest.raises(UsageError, match="the model has 5 logits, the folder has 3 classes"):
        open_source(f"{net}:make_model", asked(weights=path))
    other = open_source(f"{net}:make_model", asked(weights=path, new_head=True))
    assert other.new_head and other.weights["classifier.weight"].shape == (3, 12)
    assert np.array_equal(other.weights["stem.0.weight"], state["stem.0.weight"].numpy())


@pytest.mark.slow
def test_a_new_head_learns_what_the_folder_shows(net, one_thread, tmp_path):
    labels = np.arange(60) % 3
    pixels = np.random.default_rng(0).integers(0, 60, (60, 16, 16, 3))
    pixels[np.arange(60), :, :, labels] += 150
    images = ImageSet.from_arrays(pixels.astype(np.uint8), labels, CLASSES)
    accuracy = []
    for new_head in (False, True):
        source = open_source(f"{net}:make_model", asked(new_head=new_head))
        manifest = export_pack(source, images, tmp_path / "pack", plans=("bn", "head"), now=NOW)
        accuracy.append(manifest.calibration.accuracy)
    assert accuracy[0] < 0.7 < 0.95 < accuracy[1]


class Trap:
    """What unpickling would run."""

    def __reduce__(self):
        return (print, ("the file was executed",))


def test_files_that_are_no_weights_are_one_line(net, tmp_path, capsys):
    torch.save(made(net).state_dict(), tmp_path / "good.pth")
    state = torch.load(tmp_path / "good.pth", weights_only=True)
    cases = {
        "trap.pth": (Trap(), "not a file of weights alone"),
        "list.pth": ([1, 2], "no state dict"),
        "numbers.pth": ({"a": 1}, "no state dict"),
        "lacks.pth": ({n: v for n, v in state.items() if n != "stem.0.weight"}, "lacks stem.0.weight"),
        "shape.pth": ({**state, "stem.0.weight": torch.zeros(8, 3, 5, 5)}, "another shape of stem.0.weight"),
        "more.pth": ({**state, "neck.weight": torch.zeros(1)}, "neck.weight"),
        "headless.pth": ({n: v for n, v in state.items() if "classifier" not in n}, "no weights for the model's head"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(BadInputError, match=message) as error:
            open_source(f"{net}:make_model", asked(weights=tmp_path / name))
        assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(BadInputError, match="not a safetensors file"):
        open_source(f"{net}:make_model", asked(weights=tmp_path / "text.safetensors"))
    with pytest.raises(BadInputError, match="no such file of weights"):
        open_source(f"{net}:make_model", asked(weights=tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("function", "message"),
    (
        ("detector", r"returns \(2, 4, 16, 16\) for two images"), ("text", "returns str, not a torch module"),
        ("broken", "the function fails.*first line"), ("nothing", "no function nothing"), ("FILE", "no function FILE"),
    ),
)  # fmt: skip
def test_functions_that_make_no_classifier_are_one_line(function, message, net):
    with pytest.raises(BadInputError, match=message) as error:
        open_source(f"{net}:{function}", ASKED)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_imported_is_one_line(tmp_path):
    (tmp_path / "net.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(BadInputError, match="cannot be imported"):
        open_source(f"{tmp_path / 'net.py'}:make_model", ASKED)
    with pytest.raises(BadInputError, match="no such file"):
        open_source(f"{tmp_path / 'other.py'}:make_model", ASKED)


def test_what_is_missing_is_asked_for(net, warm):
    with pytest.raises(UsageError, match="the image size is not known"):
        open_source(f"{net}:make_model", asked(image_size=None))
    with pytest.raises(UsageError, match="normalisation of the images"):
        open_source(f"{net}:make_model", asked(std=None))
    with pytest.raises(UsageError, match="the model has 3 logits, the folder has 2 classes"):
        open_source(f"{net}:of_three", asked(folders=("a", "b")))
    with pytest.raises(BadInputError, match="takes no number of classes"):
        open_source(f"{net}:of_three", asked(folders=("a", "b"), new_head=True))
    for option in ("classes", "weights", "new_head"):
        value = {"classes": CLASSES, "weights": net, "new_head": True}[option]
        with pytest.raises(UsageError, match="does not apply to a warmup checkpoint"):
            open_source(str(warm), Asked(**{option: value}))


def test_published_models_without_their_library_are_one_line():
    for name in ("torchvision:resnet18", "timm:resnet18"):
        try:
            __import__(name.partition(":")[0])
        except ImportError:
            with pytest.raises(EdgeSelError, match="cannot be imported") as error:
                open_source(name, asked(dry=True))
            assert "\n" not in str(error.value)


def test_class_names_of_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffüber\r\nbee hive\r\n\r\n".encode())
    assert read_classes(path) == ("über", "bee hive")
    for content, message in (("a\n\nb\n", "line 2"), ("", "no class name"), ("a\nb\na\n", "class a occurs twice")):
        path.write_text(content)
        with pytest.raises(BadInputError, match=message):
            read_classes(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_classes(path)


def invoke(*arguments):
    return CliRunner().invoke(command.command, [str(part) for part in arguments])


@pytest.mark.slow
def test_a_dry_run_says_what_each_plan_needs(net, warm, tmp_path):
    result = invoke(f"{net}:make_model", "--dry-run", "--image-size", 16, "--json")
    summary = json.loads(result.output)
    assert summary["classes"] == 3 and summary["image_size"] == [16, 16]
    plans = {plan["name"]: plan for plan in summary["plans"]}
    parameters = sum(p.numel() for p in made(net).parameters())
    assert plans["full"]["parameters"] == parameters and plans["head"]["parameters"] == 39
    assert plans["full"]["activation_bytes"] > plans["head"]["activation_bytes"] > 0
    assert plans["head"]["backbone_flops"] > 0 and all(p["pack_bytes"] > 300 for p in plans.values() if p["trainable"])
    assert invoke(warm, "--dry-run").exit_code == 0
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["net.py"]


@pytest.mark.slow
def test_a_dry_run_names_the_operator_that_cannot_be_trained(net, monkeypatch):
    """An operator without a rule in the stem: later layers can be trained, the whole cannot."""
    monkeypatch.delitem(RULES, "Sigmoid")
    result = invoke(f"{net}:make_model", "--dry-run", "--image-size", 16)
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert "no gradient rule for ONNX operator Sigmoid: node_" in lines["full"] and " no: " not in lines["head"]
    net.write_text(FILE.replace("self.stem(x)", "self.stem(torch.special.digamma(x))"))
    result = invoke(f"{net}:make_model", "--dry-run", "--image-size", 16)
    assert isinstance(result.exception, EdgeSelError) and "cannot export" in str(result.exception)


def test_data_and_out_are_needed_but_for_a_dry_run(warm):
    result = invoke(warm)
    assert isinstance(result.exception, UsageError) and "--data and --out are needed" in str(result.exception)


def test_a_model_whose_classes_are_in_another_order_is_doubted(net, one_thread, tmp_path):
    write_folder(noise_images(12), tmp_path / "data")
    given = ("--image-size", 16, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--plans", "head", "--rehearsals", 0)
    result = invoke(f"{net}:make_model", "--data", tmp_path / "data", "--out", tmp_path / "pack", *given)
    assert result.exit_code == 0 and "% of 12 calibration images right" in result.output, result.output
    assert "are the classes in the order of the model's logits?" in result.output


@pytest.mark.parametrize(
    "wrong",
    (("--mean", "1,2"), ("--mean", "a,b,c"), ("--std", "0,1,1"), ("--image-size", "0"), ("--image-size", "2x"),
     ("--std", "nan,1,1")),
)  # fmt: skip
def test_options_that_make_no_sense_are_usage_errors(wrong, net):
    assert invoke(f"{net}:make_model", "--dry-run", *wrong).exit_code == 2


def test_a_network_that_lost_its_last_relu_is_built_without_it_by_its_name(monkeypatch, one_thread):
    """As SqueezeNet with a new head: on a device `--engine torch` asks for the model by the name in the pack."""
    monkeypatch.setitem(registry.MODELS, "rectified", lambda classes, size: settled("ConvReluPool", classes))
    info = WarmupInfo("rectified", ("a", "b", "c"), (16, 16), (0.5,) * 3, (0.2,) * 3, {})
    source = from_module(registry.build("rectified", 3, (16, 16)), info, new_head=True)
    assert source.info.model == "rectified+linear"
    assert not any(isinstance(m, nn.ReLU) for m in registry.build(source.info.model, 3, (16, 16)).classifier)
    assert any(isinstance(m, nn.ReLU) for m in registry.build("rectified", 3, (16, 16)).classifier)
    assert any(isinstance(m, nn.ReLU) for m in registry.build("rectified+linear", 3, (16, 16)).body), "only the last"
    assert from_module(registry.build("rectified", 3, (16, 16)), info).info.model == "rectified"


class FunctionalRelu(ENDINGS["ConvHead"]):
    """Its last ReLU is a function; the last module of that kind is in the body."""

    def end(self, x):
        return torch.relu(self.classifier(x)).mean((2, 3))


def test_a_relu_that_is_no_module_is_refused_and_no_other_is_taken_for_it(one_thread):
    info = WarmupInfo("net.py:make", ("a", "b", "c"), (16, 16), (0.5,) * 3, (0.2,) * 3, {})
    with pytest.raises(GraphError, match=r"a ReLU behind the head .*torch\.nn\.ReLU"):
        from_module(FunctionalRelu(3).eval(), info, new_head=True)
