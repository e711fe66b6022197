"""A symbolic link in a run's folder is refused by the commands that would write there."""

import pytest

from tests.cli.shell import SETUP, refused


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["events.jsonl", "history.csv", "checkpoints"])
def test_a_run_does_not_write_through_a_link(name, edge_sel, here):
    target = here / "target"
    target.mkdir() if name == "checkpoints" else target.write_bytes(b"mine\n")
    (here / "run").mkdir()
    (here / "run" / name).symlink_to(target)
    short = ["--plan", "head", "--epochs", "1", "--checkpoint-every", "1ms"]
    result = edge_sel("finetune", *short, "--out", "run", "--json", "--resume")
    refused(result, SETUP, "symbolic link", name)
    assert not list(target.iterdir()) if name == "checkpoints" else target.read_bytes() == b"mine\n"
