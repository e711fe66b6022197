"""A symbolic link in a run's folder is refused by the commands that would write there."""

import pytest

from tests.cli.shell import BAD_INPUT, SETUP, USAGE, refused

SHORT = ["--plan", "head", "--epochs", "1", "--checkpoint-every", "1ms"]


WRITTEN = [
    "events.jsonl", "history.csv", "power.csv", "run.json", "model.onnx", "weights.safetensors", "learnt.safetensors",
    "journal.jsonl", "features.cache", "report.html", *(f".{name}.tmp" for name in ("run.json", "history.csv", "model.onnx")),
]  # fmt: skip
"""What a run writes into its folder, but for its lock and its checkpoints."""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard"])
@pytest.mark.parametrize("name", WRITTEN)
def test_nothing_is_written_through_a_link(name, kind, edge_sel, here):
    """Whatever comes of the run: it may be refused, or go on without the file."""
    victim, place = here / "victim", here / "run" / name
    place.parent.mkdir()
    if kind != "dangling":
        victim.write_bytes(b"mine\n")
    place.hardlink_to(victim) if kind == "hard" else place.symlink_to(victim)
    extra = ["--report"] if name == "report.html" else []
    result = edge_sel("finetune", *SHORT, "--out", "run", "--json", "--resume", "--feature-cache-mb", 0, *extra)
    assert (
        result.code in (0, SETUP, BAD_INPUT, *([USAGE] if name in ("run.json", "report.html") else []))
        and "Traceback" not in result.err
    )
    assert victim.read_bytes() == b"mine\n" if kind != "dangling" else not victim.exists()


def test_checkpoints_are_not_written_into_a_folder_behind_a_link(edge_sel, here):
    (here / "target").mkdir()
    (here / "run").mkdir()
    (here / "run" / "checkpoints").symlink_to(here / "target")
    refused(edge_sel("finetune", *SHORT, "--out", "run", "--json", "--resume"), SETUP, "symbolic link", "checkpoints")
    assert not list((here / "target").iterdir())


@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard", "large"])
def test_a_lock_file_that_is_somebody_elses_stays_as_it_is(kind, edge_sel, here):
    """`ln -s victim OUT/.lock` once made a run overwrite the victim, and made it where it was missing."""
    victim, lock = here / "victim", here / "run" / ".lock"
    lock.parent.mkdir()
    if kind == "large":
        lock.write_bytes(b"mine\n" * 1000)
    elif kind == "hard":
        victim.write_bytes(b"mine\n")
        lock.hardlink_to(victim)
    else:
        if kind == "symbolic":
            victim.write_bytes(b"mine\n")
        lock.symlink_to(victim)
    before = {path: path.read_bytes() for path in (victim, lock) if path.exists()}
    refused(edge_sel("finetune", *SHORT, "--out", "run"), SETUP, "cannot write", ".lock")
    assert {path: path.read_bytes() for path in (victim, lock) if path.exists()} == before
    assert lock.is_symlink() == (kind in ("symbolic", "dangling"))
