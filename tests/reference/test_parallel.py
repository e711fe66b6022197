"""Two processes train as one: the same weights, the same counts, one set of results."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from edge_sel.reference import parallel


def _work(rank: int, port: int, out: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from edge_sel.power.recorder import EnergyRecorder
    from edge_sel.reference.suite import run_suite
    from edge_sel.reference.systems import SYSTEMS, SuiteOptions
    from tests.reference.conftest import COLOUR_SETS, SMALL_BATCHES

    with EnergyRecorder(None, background=False, temperature=lambda: None) as recorder:
        systems = [SYSTEMS[name] for name in ("sel-95", "ast")]
        results = run_suite(
            systems,
            lambda size: COLOUR_SETS,
            SuiteOptions(SMALL_BATCHES, "digits", Path(out), device="cpu", epochs=2),
            recorder,
        )
    rows = [
        (
            r["system"],
            r["summary"]["test_full"],
            r["summary"]["executed_flops_t"],
            [row["train_loss"] for row in r["rows"]],
        )
        for r in results
    ]
    Path(out, f"{rank}.json").write_text(json.dumps(rows))
    parallel.finish()


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_work, (port, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and len(first) == 2
    assert (tmp_path / "sel-95/seed-0/history.csv").exists()


def test_alone_nothing_happens():
    x = torch.arange(5)
    assert parallel.world() == 1 and parallel.part(x) is x and parallel.gather(x) is x and parallel.same(x) is x
    assert parallel.agree(True) and not parallel.agree(False)


def test_a_batch_is_shared_out_in_order(monkeypatch):
    monkeypatch.setattr(parallel, "world", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        parts += parallel.part(torch.arange(11)).tolist()
    assert parts == list(range(9))
