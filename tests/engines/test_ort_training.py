"""What onnxruntime-training gets wrong, or gives in another form, and the engine does not. Its contract is that of all
engines; this is what only it can get wrong. In an environment of its own: docs/howto/engines.md."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sel.edge.train.schedule import trainable_by
from edge_sel.engines.base import Batch, Hyper
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import PackError, SetupError, UsageError
from edge_sel.pack.manifest import OrtTrainingInfo, artifact_files
from edge_sel.pack.reader import builtin_pack, open_pack
from tests.edge.sessions import StopAt, Tape, full_disk, session
from tests.engines.conftest import OFFICIAL, official
from tests.engines.plans import PLANS

pytestmark = pytest.mark.skipif(not OFFICIAL, reason="onnxruntime-training is not installed")

STEP = Hyper(learning_rate=1e-2, gamma=1e-4)


@pytest.fixture(scope="package")
def engine(engines):
    return engines["ort-training"]


@pytest.fixture(scope="package")
def ort(engines):
    return engines["ort"]


def steps(trainer, batch: Batch, count: int) -> None:
    for _ in range(count):
        trainer.step(batch, STEP)


def test_a_device_imports_neither_torch_nor_onnx():
    """The package's own ``__init__`` would import both."""
    code = "import sys; from edge_sel.engines.by_name import choose_engine; choose_engine('ort-training', 1); print(sorted({'torch', 'onnx', 'flatbuffers'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("plan", [name for name in PLANS if PLANS[name].bn_mode == "batch"])
def test_the_batchs_statistics_do_not_overwrite_the_running_ones(engine, ort, pack, batch, plan):
    """The runtime writes them over the inputs of BatchNormalization if it can."""
    trainers = [each.trainer(pack, plan, pack.weights()) for each in (engine, ort)]
    for trainer in trainers:
        trainer.guilt(batch)
    mine, other = (trainer.state() for trainer in trainers)
    for name in pack.plan(plan).buffers:
        np.testing.assert_array_equal(mine[name], other[name])


@pytest.mark.parametrize("plan", ["last", "full"])
def test_gradient_norms_disturb_no_velocity(engine, pack, batch, plan):
    """Velocities are gradients that the runtime has added up, and a probe adds one more."""
    trainer, other = (engine.trainer(pack, plan, pack.weights()) for _ in range(2))
    steps(trainer, batch, 2)
    steps(other, batch, 2)
    trainer.guilt(batch)
    steps(trainer, batch, 1)
    steps(other, batch, 1)
    mine, expected = trainer.state(), other.state()
    for name, value in expected.items():
        np.testing.assert_array_equal(mine[name], value, err_msg=name)


@pytest.mark.parametrize("plan", ["affine", "full"])
def test_a_saved_state_is_every_engines(engine, ort, pack, batch, plan):
    """Its own checkpoint forgets the learning rate, and its API neither reads nor writes Adam's moments."""
    for first, second in ((engine, ort), (ort, engine)):
        begun, alone = (first.trainer(pack, plan, pack.weights()) for _ in range(2))
        steps(begun, batch, 2)
        steps(alone, batch, 4)
        taken_over = second.trainer(pack, plan, pack.weights())
        taken_over.load_state(begun.state())
        steps(taken_over, batch, 2)
        mine, expected = taken_over.state(), alone.state()
        assert mine.keys() == expected.keys() and mine["steps"] == expected["steps"] == 4
        for name in pack.plan(plan).trainable:
            scale = np.abs(expected[name] - pack.weights()[name]).max()
            assert np.abs(mine[name] - expected[name]).max() <= 0.02 * scale, name


def test_artifacts_of_another_version_are_refused(engine, pack):
    official = dataclasses.replace(pack.manifest.ort_training, version="1.18.0")
    old = pack.with_manifest(dataclasses.replace(pack.manifest, ort_training=official))
    with pytest.raises(SetupError, match=r"1\.18\.0"):
        engine.trainer(old, "head", pack.weights())


def test_a_plan_without_artifacts_is_refused(engine, pack):
    none = pack.with_manifest(dataclasses.replace(pack.manifest, ort_training=OrtTrainingInfo("1.19.2", {})))
    with pytest.raises(UsageError, match="no artifacts"):
        engine.trainer(none, "head", pack.weights())


@pytest.mark.parametrize("kind", ["training", "eval", "optimizer", "checkpoint"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 1000], ids=["empty", "zeros", "ones"])
def test_damaged_artifacts_end_in_one_line(engine, pack, kind, content):
    """A hash says that a file is as the manifest has it, not that it is any good."""
    name = getattr(artifact_files("head"), kind)
    with pytest.raises(PackError) as caught:
        engine.trainer(pack.with_manifest(pack.manifest, {name: content}), "head", pack.weights())
    assert "\n" not in str(caught.value)


def test_the_parity_check_finds_what_frozen_batch_normalisation_would_be(packs, monkeypatch):
    """Left to the runtime, its gradient is wrong without a word: such artifacts must not ship."""
    from edge_sel.graphs.builder import Builder
    from edge_sel.graphs.ir import Node
    from edge_sel.server import ort_artifacts
    from edge_sel.server.parity import check_parity, parity_batches, reference_program
    from tests.engines.reference import forward_of

    def left_to_the_runtime(b: Builder, node: Node, rank: int) -> None:
        b.copy(node)

    pack = packs["sgd"]
    model = pack.manifest.model
    forward = forward_of(pack)
    affine = pack.with_manifest(dataclasses.replace(pack.manifest, plans={"affine": pack.plan("affine")}))
    from edge_sel.data.builtin import load_digits

    batches = parity_batches(load_digits("field"), model, np.random.default_rng(0))[:2]
    reference, twin = (reference_program(dtype) for dtype in (np.float32, np.float64))

    def check(made, engine):
        return check_parity(made, forward, batches, engine, reference=reference, twin=twin)

    messages: list[str] = []
    assert ort_artifacts.add_artifacts(affine, forward, check, messages.append)[1].parameters.keys() == {"affine"}
    assert not messages
    monkeypatch.setattr(ort_artifacts, "_frozen_statistics", left_to_the_runtime)
    assert not ort_artifacts.add_artifacts(affine, forward, check, messages.append)[1].parameters
    assert len(messages) == 1 and "affine" in messages[0]


def test_a_pack_with_artifacts_opens_without_the_runtime(packs, tmp_path):
    """Every engine reads it; the closed description of a pack covers the artifacts too."""
    for pack in packs.values():
        opened = open_pack(pack.path)
        assert opened.manifest.ort_training and Path(pack.path).exists()
        assert opened.files.keys() >= {
            file for plan in opened.manifest.ort_training.parameters for file in artifact_files(plan)
        }


def test_a_run_and_one_that_is_taken_over_in_the_middle(packs, tmp_path):
    """Through the whole session: gate, curriculum, validation, checkpoints; then from the default engine to this one."""
    pack = packs["sgd"]
    flags = {"plan": "bn,last-c25,full", "epochs": 1}
    session(tmp_path / "whole", base=pack, engine=official(), **flags).run()
    session(tmp_path / "taken", base=pack, engine=OrtEngine(1), should_stop=StopAt(6), **flags).run()
    tape = Tape()
    session(tmp_path / "taken", base=pack, engine=official(), resume=True, listener=tape, **flags).run()
    assert tape.of("engine_changed")
    whole, taken = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "taken"))
    for name, value in pack.weights().items():
        moved = np.abs(whole[name] - value).max()
        assert np.abs(whole[name] - taken[name]).max() <= 0.05 * moved + 1e-6, name


def test_plans_without_artifacts_are_refused_when_a_run_is_opened(packs):
    able = trainable_by(packs["adam"], "ort-training")
    assert "last" in able.manifest.plans and "last-c25" not in able.manifest.plans and "bn" in able.manifest.plans
    with pytest.raises(UsageError, match="--with ort-training"):
        trainable_by(builtin_pack(), "ort-training")


def test_a_full_temporary_folder_is_told_as_one(engine, pack, monkeypatch):
    monkeypatch.setattr("edge_sel.engines.ort_training.TemporaryDirectory", full_disk)
    with pytest.raises(SetupError, match=r"cannot write its temporary files.*No space left.*TMPDIR"):
        engine.trainer(pack, "head", pack.weights())
