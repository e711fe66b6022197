"""``edge-sel pack keygen``, ``sign`` and ``--require-signature``, as a server and a device use them."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest

from edge_sel.pack.reader import builtin_pack
from edge_sel.pack.signatures import SIGNATURES
from edge_sel.pack.weights import write_expert
from tests.cli.shell import BAD_INPUT, PACK, SETUP, USAGE, block, refused, run

SHORT = ["--plan", "bn", "--threads", 1]


@pytest.fixture
def keys(edge_sel, here):
    """Two pairs, old and new; their fingerprints."""
    found = {}
    for name in ("old", "new"):
        shown = edge_sel("pack", "keygen", name)
        assert shown.code == 0 and shown.err == ""
        found[name] = shown.out.split()[-1]
    return found


@pytest.fixture
def signed(edge_sel, here, keys):
    """A pack that the old key signed."""
    shutil.copy(PACK, here / "a.edgepack")
    shown = edge_sel("pack", "sign", "a.edgepack", "--key", "old.key.pem")
    assert shown.out == f"a.edgepack: signed by {keys['old']}\n"
    return here / "a.edgepack"


@pytest.fixture
def unsigned(here, keys):
    shutil.copy(PACK, here / "b.edgepack")
    return here / "b.edgepack"


def signers(out):
    return json.loads((out / "run.json").read_text())["signers"]


@pytest.mark.slow
def test_verify_says_who_signed_and_what_that_is_worth(edge_sel, keys, signed, unsigned):
    assert edge_sel("pack", "verify", unsigned).out.splitlines()[-1] == "not signed"
    unchecked = edge_sel("pack", "verify", signed).out.splitlines()[-1]
    assert keys["old"] in unchecked and "not checked" in unchecked
    checked = edge_sel("pack", "verify", signed, "--require-signature", "old.pub.pem").out.splitlines()[-1]
    assert checked == f"signed by {keys['old']}, checked"
    result = json.loads(edge_sel("pack", "inspect", signed, "--json").out)
    assert result["signers"] == {"pack": {"fingerprints": [keys["old"]], "checked": False}}


DEVICE = [
    ("finetune", "--data", "images", "--out", "run"),
    ("evaluate", "--data", "images"),
    ("signature", "--data", "images", "--out", "run"),
    ("tune", "--plan", "head"),
    ("pack", "verify"),
]


@pytest.mark.parametrize("command", DEVICE, ids=lambda words: " ".join(words[:2]))
@pytest.mark.parametrize("way", ["flag", "variable"])
def test_every_command_of_a_device_refuses_what_is_not_signed(
    command, way, edge_sel, here, monkeypatch, unsigned, signed, digits_folder
):
    (here / "images").symlink_to(digits_folder)
    words = [*command[:2], unsigned] if command[0] == "pack" else [command[0], unsigned, *command[1:]]
    if way == "flag":
        words += ["--require-signature", "old.pub.pem"]
    else:
        monkeypatch.setenv("EDGE_SEL_REQUIRE_SIGNATURE", "old.pub.pem")
    before = sorted(here.rglob("*"))
    refused(edge_sel(*words), BAD_INPUT, "not signed", "b.edgepack", "edge-sel pack sign")
    other = [signed if word == unsigned else "new.pub.pem" if word == "old.pub.pem" else word for word in words]
    if way == "variable":
        monkeypatch.setenv("EDGE_SEL_REQUIRE_SIGNATURE", "new.pub.pem")
    refused(edge_sel(*other), BAD_INPUT, "not by a required key", "a.edgepack")
    assert sorted(here.rglob("*")) == before


def test_a_run_names_its_signer(edge_sel, here, keys, signed, digits_folder):
    data = ["--data", digits_folder, *SHORT]
    checked = edge_sel("finetune", signed, *data, "--out", "run", "--require-signature", "old.pub.pem")
    assert checked.code == 0 and f"pack signed by {keys['old']}, checked" in checked.out
    assert signers(here / "run") == {"pack": {"fingerprints": [keys["old"]], "checked": True}, "expert": None}
    plain = edge_sel("finetune", signed, *data, "--out", "plain")
    assert f"pack signed by {keys['old']}, not checked" in plain.out
    assert signers(here / "plain")["pack"] == {"fingerprints": [keys["old"]], "checked": False}
    shown = edge_sel("evaluate", signed, "--data", digits_folder, "--json", "--require-signature", "old.pub.pem")
    assert json.loads(shown.out)["signers"]["pack"]["checked"] is True


@pytest.mark.sampled(2)
@pytest.mark.parametrize("text", ['["old.pub.pem", "new.pub.pem"]', f'"old.pub.pem{os.pathsep}new.pub.pem"'])
def test_a_file_of_settings_may_name_several_keys(text, edge_sel, here, keys, signed, unsigned, digits_folder):
    (here / "device.toml").write_text(f"require_signature = {text}\n")
    given = ["--data", digits_folder, *SHORT, "--config", "device.toml"]
    assert edge_sel("finetune", signed, *given, "--out", "first").code == 0
    refused(edge_sel("finetune", unsigned, *given, "--out", "second"), BAD_INPUT, "not signed")
    edge_sel("pack", "sign", unsigned, "--key", "new.key.pem")
    assert edge_sel("finetune", unsigned, *given, "--out", "third").code == 0
    assert signers(here / "third")["pack"]["fingerprints"] == [keys["new"]]


@pytest.mark.slow
def test_a_key_is_replaced_without_a_gap(edge_sel, keys, signed):
    """First the packs have both signatures, then the devices the new key."""
    shown = edge_sel("pack", "sign", signed, "--key", "new.key.pem")
    assert shown.out.endswith(f"signed by {keys['new']}, 2 signatures in all\n")
    for name in ("old", "new"):
        assert edge_sel("pack", "verify", signed, "--require-signature", f"{name}.pub.pem").code == 0
    both = ["--require-signature", "new.pub.pem", "--require-signature", "old.pub.pem"]
    assert all(name in edge_sel("pack", "verify", signed, *both).out for name in keys.values())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--require-signature", ""], USAGE),
        (["--require-signature", "missing.pem"], BAD_INPUT),
        (["--require-signature", "none"], BAD_INPUT),
        (["--require-signature", "old.key.pem"], BAD_INPUT),
        (["--require-signature", "old.pub.pem", "--require-signature", "old.pub.pem"], USAGE),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_a_requirement_that_cannot_be_read_is_no_missing_one(command, words, code, edge_sel, here, signed):
    """An empty variable of a script must not open what was to be checked."""
    result = edge_sel(command, signed, "--data", here, *words)
    refused(result, code)
    assert not (here / "runs").exists()


@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_neither_is_an_empty_variable(command, edge_sel, here, monkeypatch, signed):
    monkeypatch.setenv("EDGE_SEL_REQUIRE_SIGNATURE", "")
    refused(edge_sel(command, signed, "--data", here), USAGE, "EDGE_SEL_REQUIRE_SIGNATURE")


@pytest.mark.parametrize("text", ["[]", "[[]]", "[1]", "1", "true", '[""]', '["old.pub.pem", "old.pub.pem"]'])
def test_neither_is_a_wrong_value_in_a_file(text, edge_sel, here, signed, digits_folder):
    (here / "device.toml").write_text(f"require_signature = {text}\n")
    result = edge_sel("finetune", signed, "--data", digits_folder, "--config", "device.toml")
    refused(result, USAGE, "require_signature", "such as release.pub.pem")


def test_the_built_in_pack_is_not_signed(edge_sel, here, keys):
    refused(edge_sel("finetune", "--require-signature", "old.pub.pem"), BAD_INPUT, "not signed")
    assert not (here / "runs").exists()


# Going on


@pytest.fixture
def stopped(edge_sel, here, signed, digits_folder):
    """A run under the old key that its budget stopped; how to go on."""
    words = ["finetune", signed, "--data", digits_folder, "--out", "run", "--threads", 1, "--plan", "full"]
    first = edge_sel(*words, "--energy-budget", "1J", "--require-signature", "old.pub.pem")
    assert first.code == 75, first.err
    return [*words, "--resume", "--epochs", 3, "--energy-budget", "1MJ"]


def test_a_run_goes_on_only_under_a_requirement(edge_sel, here, stopped, signed):
    refused(edge_sel(*stopped), USAGE, "cannot resume", "--require-signature")
    refused(edge_sel(*stopped, "--require-signature", "new.pub.pem"), BAD_INPUT, "not by a required key")
    edge_sel("pack", "sign", signed, "--key", "new.key.pem")
    assert edge_sel(*stopped, "--require-signature", "new.pub.pem").code == 0
    refused(edge_sel(*stopped), USAGE, "cannot resume", "--require-signature")  # nor once it is done


def test_what_was_exchanged_meanwhile_is_refused(edge_sel, here, stopped, signed):
    shutil.copy(PACK, signed)
    refused(edge_sel(*stopped, "--require-signature", "old.pub.pem"), BAD_INPUT, "not signed")


def test_a_requirement_may_come_later(edge_sel, here, signed, digits_folder):
    words = ["finetune", signed, "--data", digits_folder, "--out", "run", *SHORT]
    assert edge_sel(*words).code == 0
    assert edge_sel(*words, "--resume", "--require-signature", "old.pub.pem").code == 0


# Experts


def test_an_expert_needs_a_signature_too(edge_sel, here, keys, signed, digits_folder):
    pack = builtin_pack()
    write_expert(here / "e.safetensors", pack, pack.weights())
    words = ["finetune", signed, "--data", digits_folder, *SHORT, "--expert", "e.safetensors", "--out", "run"]
    words += ["--require-signature", "old.pub.pem"]
    refused(edge_sel(*words), BAD_INPUT, "the expert is not signed", "e.safetensors")
    assert not (here / "run").exists()
    edge_sel("pack", "sign", "e.safetensors", "--key", "new.key.pem")
    refused(edge_sel(*words), BAD_INPUT, "the expert is signed by", "not by a required key")
    edge_sel("pack", "sign", "e.safetensors", "--key", "old.key.pem")
    shown = edge_sel(*words)
    assert shown.code == 0 and f"expert signed by {keys['old']}, checked" in shown.out
    assert signers(here / "run")["expert"] == {"fingerprints": [keys["old"]], "checked": True}
    (here / f"e.safetensors.{SIGNATURES}").unlink()
    refused(edge_sel(*words, "--resume"), BAD_INPUT, "the expert is not signed")


# What is asked of a machine


def test_without_the_extra_one_line_says_which(tmp_path, edge_sel, signed, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for words in (
        ("pack", "keygen", "more"),
        ("pack", "sign", signed, "--key", "old.key.pem"),
        ("pack", "verify", signed, "--require-signature", "old.pub.pem"),
        ("finetune", signed, "--data", tmp_path, "--require-signature", "old.pub.pem"),
    ):
        refused(edge_sel(*words), SETUP, "edge-sel[sign]")
    assert not (tmp_path / "more.key.pem").exists()
    without = block(tmp_path / "blocked", "cryptography")
    assert (
        run("pack", "inspect", signed, cwd=tmp_path, PYTHONPATH=without).returncode == 0
    )  # a signed pack opens without it


@pytest.mark.parametrize("name", [".", "..", "folder", "/"])
def test_a_folder_is_no_name_of_keys(name, edge_sel, here):
    (here / "folder").mkdir()
    refused(edge_sel("pack", "keygen", name), USAGE, "NAME is a folder")
    assert list(here.rglob("*")) == [here / "folder"]


def test_keys_are_never_overwritten(edge_sel, here, keys):
    before = {path: path.read_bytes() for path in here.iterdir()}
    refused(edge_sel("pack", "keygen", "old"), SETUP, "not overwritten", "old.pub.pem")
    assert {path: path.read_bytes() for path in here.iterdir()} == before
