"""A symbolic link in a run's folder is refused by the commands that would write there."""

import pytest

from tests.cli.shell import SETUP, refused

SHORT = ["--plan", "head", "--epochs", "1", "--checkpoint-every", "1ms"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["events.jsonl", "history.csv", "checkpoints"])
def test_a_run_does_not_write_through_a_link(name, edge_sel, here):
    target = here / "target"
    target.mkdir() if name == "checkpoints" else target.write_bytes(b"mine\n")
    (here / "run").mkdir()
    (here / "run" / name).symlink_to(target)
    result = edge_sel("finetune", *SHORT, "--out", "run", "--json", "--resume")
    refused(result, SETUP, "symbolic link", name)
    assert not list(target.iterdir()) if name == "checkpoints" else target.read_bytes() == b"mine\n"


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
