"""What only a GPU can show: run with ``pytest -m gpu tests/reference`` on a machine that has one."""

import subprocess
import sys

import pytest
import torch

from edge_sel.power.recorder import EnergyRecorder
from edge_sel.reference.data import load_sets
from edge_sel.reference.policies import build_policy
from edge_sel.reference.suite import run_suite
from edge_sel.reference.systems import SYSTEMS, SuiteOptions, find_scale

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]
SMOKE = find_scale("smoke")
ONE_OF_EACH = list({(s.policy, s.setup.model): name for name, s in SYSTEMS.items()}.values())
"""One system for each policy and model: compiling takes seconds."""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_kind_of_system_runs_compiled_in_half_precision(name, tmp_path):
    with EnergyRecorder(None, background=False, temperature=lambda: None) as recorder:
        options = SuiteOptions(SMOKE, "digits", tmp_path, device="cuda")
        result = run_suite([SYSTEMS[name]], lambda size: load_sets("digits", SMOKE, size), options, recorder)[0]
    assert all(row["train_loss"] is not None for row in result["rows"])
    assert "gpu" in result["environment"] and result["environment"]["compiled"] and result["compile"]["seconds"] > 0


@pytest.mark.filterwarnings("default")
def test_a_step_never_waits_for_the_gpu(sets):
    from edge_sel.reference.images import make_images
    from edge_sel.reference.trainer import SystemTrainer
    from tests.reference.conftest import SETUP, colours, tiny_net

    train, test = make_images(colours(), colours(30), torch.device("cuda"))
    policy = build_policy(SYSTEMS["sel-95"], SYSTEMS["sel-95"].at(SMOKE))
    run = SystemTrainer(tiny_net(), SETUP, policy, train, test, seed=0)
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


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["baseline", "sel-95", "ast", "dihcl-exp"])
def test_no_step_of_an_epoch_waits_for_the_gpu(name, sets):
    """From the second step to the last one, with the images and the choice of each batch."""
    from edge_sel.reference.images import make_images
    from edge_sel.reference.trainer import SystemTrainer
    from tests.reference.conftest import SETUP, colours, tiny_net

    train, test = make_images(colours(240), colours(30), torch.device("cuda"))
    asked, batches = [], []

    def before_each_step():
        asked.append(torch.cuda.get_sync_debug_mode())
        torch.cuda.set_sync_debug_mode("error" if 2 <= len(asked) < len(batches) else "default")

    policy = build_policy(SYSTEMS[name], SYSTEMS[name].at(SMOKE))
    run = SystemTrainer(tiny_net(), SETUP, policy, train, test, seed=0, should_stop=before_each_step)
    shuffled = run._shuffled

    def counted(pool, epoch):
        asked.clear()
        batches[:] = shuffled(pool, epoch)
        return batches

    run._shuffled = counted
    run.train_epoch(1)
    try:
        run.train_epoch(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(asked) == len(batches) > 3 and asked.count(2) == len(batches) - 2


@pytest.mark.filterwarnings("default")
def test_a_run_on_the_gpu_is_that_on_a_processor_within_noise(tmp_path):
    """In float32 against half precision: as many images and operations, and what it learns."""
    found = {}
    for device in ("cpu", "cuda"):
        with EnergyRecorder(None, background=False, temperature=lambda: None) as recorder:
            options = SuiteOptions(SMOKE, "digits", tmp_path / device, device=device, epochs=8)
            found[device] = run_suite(
                [SYSTEMS["ast-dense"]], lambda size: load_sets("digits", SMOKE, size), options, recorder
            )[0]
    ours, theirs = (result["summary"] for result in found.values())
    assert ours["executed_flops_t"] == pytest.approx(theirs["executed_flops_t"])
    assert ours["test_full"] == pytest.approx(theirs["test_full"], abs=0.1)
    losses = [result["rows"][-1]["train_loss"] for result in found.values()]
    assert losses[0] == pytest.approx(losses[1], rel=0.3)


@pytest.mark.slow
def test_the_trainer_is_faster_than_a_plain_loop():
    out = subprocess.run(
        [sys.executable, "tools/bench_reference.py", "--images", "12000", "--epochs", "1"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    import json

    assert json.loads(out)["ratio"] >= 1.5  # 2.3 on an H200; the aim of 8 is missed
