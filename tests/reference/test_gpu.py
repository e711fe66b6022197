"""What only a GPU can show: run with ``pytest -m gpu tests/reference`` on a machine that has one."""

import subprocess
import sys

import pytest
import torch

from edge_sel.power.recorder import EnergyRecorder
from edge_sel.reference.data import load_sets
from edge_sel.reference.options import SuiteOptions
from edge_sel.reference.policies.build import build_policy
from edge_sel.reference.setup import find_scale
from edge_sel.reference.suite import run_suite
from edge_sel.reference.systems import SYSTEMS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]
SMOKE = find_scale("smoke")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_runs_compiled_in_half_precision(name, tmp_path):
    with EnergyRecorder(None, background=False, temperature=lambda: None) as recorder:
        options = SuiteOptions(SMOKE, "digits", tmp_path, device="cuda")
        result = run_suite([SYSTEMS[name]], lambda size: load_sets("digits", SMOKE, size), options, recorder)[0]
    assert all(row["train_loss"] is not None for row in result["rows"])
    assert "gpu" in result["environment"]


@pytest.mark.filterwarnings("default")
def test_a_step_never_waits_for_the_gpu(sets):
    from edge_sel.reference.images import make_images
    from edge_sel.reference.trainer import ReferenceTrainer
    from tests.reference.conftest import SETUP, colours, tiny_net

    train, test = make_images(colours(), colours(30), torch.device("cuda"))
    policy = build_policy(SYSTEMS["sel-95"], SYSTEMS["sel-95"].at(SMOKE))
    run = ReferenceTrainer(tiny_net(), SETUP, policy, train, test, seed=0)
    run.train_epoch(1)
    step, watched_steps = run._step, []

    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            watched_steps.append(step(*arguments))
        finally:
            torch.cuda.set_sync_debug_mode("default")

    run._step = watched
    run.train_epoch(2)
    assert watched_steps


def test_the_trainer_is_eight_times_as_fast_as_a_plain_loop():
    out = subprocess.run(
        [sys.executable, "tools/bench_reference.py"], capture_output=True, text=True, check=True
    ).stdout
    import json

    assert json.loads(out)["ratio"] >= 8
