"""Every mistake is one line that says what to do, and has its own exit status."""

import sys

import pytest

from tests.cli.shell import BAD_INPUT, PACK, SETUP, USAGE, block, refused, run
from tests.edge.sessions import tree

# Options and settings

OPTIONS = {
    "unknown option": (["--epohcs", 3], ["--epohcs", "--epochs"]),
    "no value": (["--epochs"], ["--epochs"]),
    "one argument too many": (["a", "b"], ["b"]),
    "no epochs": (["--epochs", 0], ["epochs", "at least 1"]),
    "not a number": (["--epochs", "many"], ["epochs", "whole number"]),
    "rate above one": (["--target-rate", 2], ["target_rate", "at most 1"]),
    "rate of nothing": (["--target-rate", "0%"], ["target_rate", "above 0"]),
    "learning rate": (["--learning-rate", "nan"], ["learning_rate"]),
    "two mistakes at once": (["--epochs", 0, "--seed", -1], ["epochs", "seed"]),
    "unknown gate": (["--gate", "shut"], ["gate", "sundew, hard, random, off"]),
    "unknown meter": (["--meter", "guess"], ["meter", "psutil"]),
    "unknown engine": (["--engine", "abacus"], ["engine", "ort"]),
    "unknown plan": (["--plan", "bn,lst"], ["lst", "last-c25"]),
    "no plan": (["--plan", ","], ["--plan", "last-c25"]),
    "unknown profile": (["--profile", "lapto"], ["laptop"]),
    "too many threads": (["--threads", 100000], ["threads", "at most"]),
    "an empty folder": (["--out", ""], ["--out", "empty"]),
    "empty data": ([PACK, "--data", ""], ["--data", "empty"]),
    "config is missing": (["--config", "none.toml"], ["none.toml", "No such file"]),
    "resume of nothing named": (["--resume"], ["--out"]),
    "pack without data": ([PACK], ["--data"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_wrong_option_is_refused(case, edge_sel):
    arguments, words = OPTIONS[case]
    refused(edge_sel("finetune", *arguments), USAGE, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epohcs = 3", ["epohcs", "epochs"]),
        ("epochs = 'many'", ["epochs", "whole number"]),
        ("epochs = ", ["mine.toml", "TOML"]),
        ("[power]\nidle_w = 3", ["power.idle_w"]),
    ],
)
def test_a_wrong_config_file_is_refused(text, words, edge_sel, here):
    (here / "mine.toml").write_text(text)
    refused(edge_sel("finetune", "--config", "mine.toml"), USAGE, *words, "mine.toml")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("EDGE_SEL_EPOCH", "3", ["EDGE_SEL_EPOCHS"]), ("EDGE_SEL_EPOCHS", "soon", ["epochs", "EDGE_SEL_EPOCHS"])],
)
def test_a_wrong_environment_variable_is_refused(name, value, words, edge_sel, monkeypatch):
    monkeypatch.setenv(name, value)
    refused(edge_sel("finetune"), USAGE, *words)


@pytest.mark.parametrize(("arguments", "near"), [(["finetun"], "finetune"), (["pack", "inspec"], "inspect")])
def test_an_unknown_command_names_the_nearest(arguments, near, edge_sel):
    refused(edge_sel(*arguments), USAGE, near)


@pytest.mark.parametrize("arguments", [["evaluate"], ["evaluate", PACK], ["pretrain"], ["export"], ["pack", "verify"]])
def test_a_missing_argument_is_named(arguments, edge_sel):
    refused(edge_sel(*arguments), USAGE, "Missing")


def test_mistakes_leave_nothing_behind(edge_sel, here):
    """All of these are found out before any image is read."""
    for arguments, _ in OPTIONS.values():
        edge_sel("finetune", *arguments)
    edge_sel("finetune", "--require-measured", "--meter", "psutil")
    assert list(here.iterdir()) == []


# Where to write


def test_out_is_a_file(edge_sel, here):
    (here / "out").write_text("mine")
    refused(edge_sel("finetune", "--out", "out"), USAGE, "--out is a file")
    assert (here / "out").read_text() == "mine"


@pytest.mark.parametrize("place", ["file/run", "file/deep/run", "/proc/edge-sel/run", "x" * 300])
def test_out_cannot_be_made(place, edge_sel, here):
    """Such places refuse root too, so this works in any container."""
    (here / "file").write_text("")
    refused(edge_sel("finetune", "--out", place), SETUP, "cannot write to --out", place)


def test_out_holds_a_run(edge_sel, here):
    assert edge_sel("finetune", "--out", "run", "--plan", "bn", "--threads", 1).code == 0
    before = tree(here / "run")
    refused(edge_sel("finetune", "--out", "run", "--plan", "bn", "--threads", 1), USAGE, "--resume")
    refused(edge_sel("finetune", "--out", "run", "--resume", "--seed", 5), USAGE, "plan, seed, threads")
    assert tree(here / "run") == before


# The machine


def test_modelled_energy_may_be_refused(edge_sel):
    """The model is asked for by name, so that this holds on a machine with a meter too."""
    result = edge_sel("finetune", "--require-measured", "--meter", "psutil")
    refused(result, SETUP, "no meter measures energy here", "--require-measured")
    assert "here:" not in result.err  # no empty list of reasons


@pytest.mark.parametrize("command", ["pretrain", "export", "finetune"])
def test_without_torch_it_says_what_to_install(command, here, tmp_path):
    arguments = {
        "pretrain": ["pretrain", "--data", "x", "--out", "y"],
        "export": ["export", "--dry-run", "torchvision:resnet18"],
        "finetune": ["finetune", "--engine", "torch"],
    }[command]
    result = run(*arguments, cwd=here, PYTHONPATH=block(tmp_path / "blocked", "torch", "torchvision"))
    assert result.returncode == SETUP
    assert result.stderr.count("\n") == 1 and "pip install 'edge-sel[server]'" in result.stderr


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["finetune", "--epohcs", 1], USAGE),
        (["finetune", "--out", "file/run"], SETUP),
        (["pack", "verify", "x"], BAD_INPUT),
    ],
)
def test_statuses_reach_the_shell(arguments, code, here):
    (here / "file").write_text("")
    result = run(*arguments, cwd=here)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (code, "", 1)


def test_a_bug_is_not_hidden(here):
    """What nobody expected keeps its traceback and exits with 1."""
    code = "import edge_sel.cli.pack as p, edge_sel.pack.reader as r\nfrom edge_sel.cli.main import main\n"
    code += f"import sys\nr.open_pack = None\nsys.argv = ['edge-sel', 'pack', 'inspect', {str(PACK)!r}]\nmain()"
    result = run(cwd=here, command=[sys.executable, "-c", code])
    assert result.returncode == 1 and "Traceback" in result.stderr
