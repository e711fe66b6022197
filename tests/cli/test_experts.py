"""From a device's signature to an expert for it and back, on the built-in digits."""

import json

import numpy as np
import pytest

from edge_sel.data.builtin import load_digits
from edge_sel.data.shifts import apply_shift, write_folder
from edge_sel.data.signature import LENGTH, read_signature
from edge_sel.pack.reader import builtin_pack, open_pack
from edge_sel.pack.weights import read_expert, write_expert
from edge_sel.server import expert as cameras
from tests.cli.shell import BAD_INPUT, PACK, SETUP, USAGE, block, refused, run
from tests.edge.sessions import events, outcome, tree

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A short search for the cameras."""
    monkeypatch.setattr(cameras, "_FIRST", 30)
    monkeypatch.setattr(cameras, "_POPULATION", 16)
    monkeypatch.setattr(cameras, "_ROUNDS", 2)


@pytest.fixture(scope="module")
def server_images(tmp_path_factory):
    root = tmp_path_factory.mktemp("server") / "images"
    write_folder(load_digits("pretrain").subset(np.arange(260)), root)
    return root


@pytest.fixture(scope="module")
def dark_digits(tmp_path_factory):
    """A device in the dark."""
    root = tmp_path_factory.mktemp("device") / "images"
    write_folder(apply_shift("low_light", load_digits("field"), seed=0).subset(np.arange(120)), root)
    return root


@pytest.fixture
def signed(edge_sel, here, dark_digits):
    assert edge_sel("signature", PACK, "--data", dark_digits, "--out", "place.json").code == 0
    return here / "place.json"


@pytest.fixture
def expert(edge_sel, here, signed, server_images):
    made = edge_sel("expert", PACK, signed, "--data", server_images, "--out", "expert.safetensors", "--epochs", 1)
    assert made.code == 0, made.err
    return here / "expert.safetensors"


def expert_events(out):
    return [event for event in events(out) if event["event"] == "expert"]


def test_the_whole_way(edge_sel, here, expert, dark_digits):
    plain = edge_sel("finetune", PACK, "--data", dark_digits, "--out", "plain", "--json")
    given = edge_sel("finetune", PACK, "--data", dark_digits, "--out", "run", "--expert", expert, "--json")
    assert plain.code == given.code == 0 and expert_events(here / "plain") == []
    (event,) = expert_events(here / "run")
    before = json.loads(given.out)["before"]["validation"]["accuracy"]
    assert event["instead_of"] == before == json.loads(plain.out)["before"]["validation"]["accuracy"]
    assert event["taken"] is True and event["accuracy"] >= before
    assert read_expert(expert, open_pack(PACK)).digest == json.loads(given.out)["identity"]["expert"]


@pytest.mark.slow
def test_what_a_person_reads(edge_sel, here, signed, server_images, dark_digits):
    taken = edge_sel("signature", PACK, "--data", dark_digits, "--out", "again.json")
    assert taken.out == f"wrote again.json: 120 images, {(here / 'again.json').stat().st_size} bytes\n"
    made = edge_sel("expert", PACK, signed, "--data", server_images, "--out", "e", "--epochs", 2)
    assert "fitting cameras: distance" in made.err and "epoch 2/2  loss" in made.err
    assert made.out.startswith("wrote e: trained on 260 images, 0.")
    run = edge_sel("finetune", PACK, "--data", dark_digits, "--out", "run", "--expert", "e")
    assert [line for line in run.err.splitlines() if line.startswith("expert: ")] and "begins with it" in run.err


def test_a_signature_is_a_kilobyte_of_statistics_and_the_same_for_the_same_seed(edge_sel, here, signed, dark_digits):
    content = json.loads(signed.read_text())
    assert set(content) == {"format", "size", "images", "values"} and len(content["values"]) == LENGTH < 100
    assert signed.stat().st_size < 1500 and content["images"] == 120 and content["size"] == [16, 16]
    assert edge_sel("signature", PACK, "--data", dark_digits, "--out", "again.json", "--json").code == 0
    assert (here / "again.json").read_bytes() == signed.read_bytes()


def test_a_signature_needs_no_known_classes(edge_sel, here, dark_digits):
    """It looks at pictures, not at what they show."""
    (here / "data").mkdir()
    (here / "data" / "fish").symlink_to(dark_digits / "3")
    assert edge_sel("signature", PACK, "--data", "data", "--out", "fish.json").code == 0
    assert read_signature(here / "fish.json").images == len(list((dark_digits / "3").iterdir()))


@pytest.fixture
def worse(here):
    pack = builtin_pack()
    rng = np.random.default_rng(0)
    write_expert(
        here / "worse", pack, {n: v + rng.normal(size=v.shape).astype("f4") for n, v in pack.weights().items()}
    )
    return here / "worse"


@pytest.mark.slow
def test_a_worse_expert_is_ignored(edge_sel, here, worse, dark_digits):
    run = edge_sel("finetune", PACK, "--data", dark_digits, "--out", "with", "--expert", worse)
    assert run.code == 0 and "expert: " in run.err and "ignored" in run.err
    assert edge_sel("finetune", PACK, "--data", dark_digits, "--out", "without", "--json").code == 0
    assert [event["taken"] for event in expert_events(here / "with")] == [False]
    names = ("weights.safetensors", "model.onnx")
    assert all((here / "with" / name).read_bytes() == (here / "without" / name).read_bytes() for name in names)
    assert outcome(here / "with")["accuracy"] == outcome(here / "without")["accuracy"]


@pytest.mark.slow
def test_classes_of_the_device_with_an_expert(edge_sel, here, expert, dark_digits):
    write_folder(apply_shift("low_light", load_digits("field"), seed=0).subset(np.arange(120)), here / "data")
    (here / "data" / "9").rename(here / "data" / "nine")
    given = ["finetune", PACK, "--data", "data", "--out", "run", "--expert", expert, "--json"]
    refused(edge_sel(*given), BAD_INPUT, "nine")
    result = edge_sel(*given, "--new-classes", "extend", "--out", "extended")
    assert (
        result.code == 0
        and json.loads(result.out)["classes"][-1] == "nine"
        and len(expert_events(here / "extended")) == 1
    )


# Refused


def other_size(path):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"size": [32, 32]}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (other_size, ["another size"]),
        (lambda path: path.write_text("{}"), ["not a signature"]),
        (lambda path: path.write_text('{"format": "edge-sel-signature-1", "size": [Infinity, 1], "values": [1e999]}'),
         ["not a signature"]),
        (lambda path: path.unlink(), ["cannot be read"]),
    ],
    ids=["image size", "empty", "infinite", "missing"],
)  # fmt: skip
def test_a_signature_of_no_use_makes_no_expert(harm, words, edge_sel, here, signed, server_images):
    harm(signed)
    (here / "mine").write_text("mine")
    before = tree(here)
    result = edge_sel("expert", PACK, signed, "--data", server_images, "--out", "mine")
    refused(result, result.code, *words, "place.json")
    assert result.code in (BAD_INPUT, USAGE) and tree(here) == before


def test_images_of_no_use_make_nothing(edge_sel, here, signed, server_images):
    (here / "mine").write_text("mine")
    (here / "one").mkdir()
    (here / "one" / "3").symlink_to(server_images / "3")
    (here / "other").mkdir()
    (here / "other" / "fish").symlink_to(server_images / "3")
    before = tree(here)
    refused(edge_sel("expert", PACK, signed, "--data", "one", "--out", "mine"), BAD_INPUT, "one class only (3)")
    refused(edge_sel("expert", PACK, signed, "--data", "other", "--out", "mine"), BAD_INPUT, "fish")
    refused(edge_sel("signature", PACK, "--data", "nowhere", "--out", "mine"), BAD_INPUT, "nowhere")
    refused(edge_sel("signature", "nothing.edgepack", "--data", "one", "--out", "mine"), BAD_INPUT, "nothing.edgepack")
    assert tree(here) == before


def test_a_folder_as_out_is_refused_first(edge_sel, here, signed, server_images):
    (here / "folder").mkdir()
    refused(edge_sel("expert", PACK, signed, "--data", server_images, "--out", "folder"), USAGE, "--out", "folder")
    refused(edge_sel("signature", PACK, "--data", server_images, "--out", "folder"), USAGE, "--out", "folder")


def test_a_signature_is_no_expert_and_begins_no_run(edge_sel, here, signed, dark_digits):
    result = edge_sel("finetune", PACK, "--data", dark_digits, "--out", "run", "--expert", signed)
    refused(result, BAD_INPUT, "expert", "place.json")
    assert not (here / "run").exists()


def test_signing_needs_no_torch_and_training_an_expert_says_so(tmp_path, dark_digits):
    without = {"PYTHONPATH": block(tmp_path / "blocked", "torch", "torchvision")}
    signed = run("signature", PACK, "--data", dark_digits, "--out", "place.json", cwd=tmp_path, **without)
    assert signed.returncode == 0, signed.stderr
    made = run("expert", PACK, "place.json", "--data", dark_digits, "--out", "e", cwd=tmp_path, **without)
    assert made.returncode == SETUP and "edge-sel[server]" in made.stderr and "\n" not in made.stderr.strip()
