"""The built-in pack's network compiled for each optimizer, on each engine, and one batch of noisy digits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

from edge_sel.arrays import Arrays
from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import normalise
from edge_sel.engines.base import Backbone, Batch, Engine, Predict, Scores, StepResult, Trainer
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.ort_training_api import owners
from edge_sel.engines.torch import TorchEngine
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.writer import write_pack
from tests.engines.reference import forward_of
from tests.once import MAKES_PLANS, code_digest, kept_folder, once


class BlockedOrt(OrtEngine):
    """Takes the blocked form of its graphs also for the smallest step."""

    blocked_from_flops = 0


def official() -> Engine:
    from edge_sel.engines.ort_training import OrtTrainingEngine

    return OrtTrainingEngine(1)


OFFICIAL = "onnxruntime-training" in owners()
"""Whether this is the environment of the official training runtime; `.ci/run` makes one where there is a wheel."""
ENGINES = {
    "ort": lambda: OrtEngine(1),
    "ort, blocked": lambda: BlockedOrt(1),
    "torch": lambda: TorchEngine(1, device="cpu"),
    **({"ort-training": official} if OFFICIAL else {}),
}
OPTIMIZERS = ("sgd", "adam")


class WholeImages:
    """An engine whose trainers take images, whether a plan has a backbone or not."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.name = engine, engine.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Any:
        trainer, backbone = self._engine.trainer(pack, plan, weights), self._engine.backbone(pack, plan, weights)
        return _WholeImagesTrainer(trainer, backbone) if backbone else trainer


class _WholeImagesTrainer:
    def __init__(self, trainer: Trainer, backbone: Backbone) -> None:
        self._trainer, self._backbone = trainer, backbone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        return self._trainer.score(self._backbone(images), labels)

    def step(self, batch: Batch, hyper: Any) -> StepResult:
        return self._trainer.step(batch._replace(images=self._backbone(batch.images)), hyper)

    def guilt(self, batch: Batch) -> Arrays:
        return self._trainer.guilt(batch._replace(images=self._backbone(batch.images)))


@pytest.fixture(scope="package")
def engines(one_thread: None) -> dict[str, Any]:
    """All of them, by name."""
    return {name: WholeImages(make()) for name, make in ENGINES.items()}


@pytest.fixture(scope="package", params=ENGINES)
def engine(request: pytest.FixtureRequest, engines: dict[str, Any]) -> Any:
    return engines[request.param]


@pytest.fixture(autouse=True)
def can_train(request: pytest.FixtureRequest) -> None:
    """The only plans that an engine does not have."""
    if {"engine", "pack", "plan"} <= {*request.fixturenames}:
        engine, pack, plan = (request.getfixturevalue(name) for name in ("engine", "pack", "plan"))
        if engine.name == "ort-training" and pack.plan(plan).channels and pack.manifest.optimizer == "adam":
            pytest.skip("the official Adam moves every channel of a weight")


@pytest.fixture(scope="package", autouse=True)
def once_here(exports_once: None) -> None:
    pass


@pytest.fixture(scope="package")
def packs(
    digits_pack: Pack, tmp_path_factory: pytest.TempPathFactory, exports_once: None, request: Any
) -> dict[str, Pack]:
    """By optimizer: the built-in pack's weights with the graphs that today's compiler makes of them."""
    from edge_sel.server.compile_plans import DEFAULT_PLANS, compile_plans

    manifest, weights = digits_pack.manifest, digits_pack.weights()
    forward = forward_of(digits_pack)
    made = {}
    for optimizer in OPTIMIZERS:
        given = forward, DEFAULT_PLANS, optimizer, len(manifest.model.classes), lambda line: None
        name, kept = f"plans-{optimizer}-{digits_pack.digest}-{code_digest(MAKES_PLANS)}", kept_folder(request.config)
        graphs, plans, backbones, _ = once(tmp_path_factory, name, partial(compile_plans, *given), kept=kept)
        path = tmp_path_factory.mktemp(optimizer) / "pack"
        manifest = dataclasses.replace(manifest, optimizer=optimizer, plans=plans, backbones=backbones)
        write_pack(path, manifest, weights, graphs)
        made[optimizer] = open_pack(path)
        if OFFICIAL:
            from edge_sel.server.ort_artifacts import add_artifacts

            artifacts, info = add_artifacts(made[optimizer], forward, lambda pack, engine: None, pytest.fail)
            write_pack(path, dataclasses.replace(manifest, ort_training=info), weights, graphs, artifacts)
            made[optimizer] = open_pack(path)
    return made


@pytest.fixture(scope="package", params=OPTIMIZERS)
def pack(request: pytest.FixtureRequest, packs: dict[str, Pack]) -> Pack:
    return packs[request.param]


@pytest.fixture(scope="package")
def batch(digits_pack: Pack) -> Batch:
    """Twelve digits with so much noise that every sample has a loss, and uneven sample weights.

    The seed keeps every ReLU's input 5e-6 away from zero, so that no engine's rounding carries one across its kink.
    """
    rng = np.random.default_rng(10)
    digits = load_digits("field")
    x = normalise(digits.read(np.arange(12)), digits_pack.manifest.model.mean, digits_pack.manifest.model.std)
    x += rng.normal(0, 1.5, x.shape).astype(np.float32)
    return Batch(x, digits.labels[:12], rng.uniform(0.5, 1.5, 12).astype(np.float32))


@pytest.fixture(scope="package")
def given(digits_pack: Pack) -> Arrays:
    """The arrays that every shared trainer and predictor was made from; an engine must not change them."""
    return digits_pack.weights()


@pytest.fixture(scope="package")
def predict(engine: Any, pack: Pack, given: Arrays) -> Predict:
    return engine.predictor(pack, given)


@pytest.fixture(scope="package")
def shared_trainers() -> dict[tuple[str, str, str, int], tuple[Trainer, Arrays]]:
    """Those made so far, each with the state it started in."""
    return {}


@pytest.fixture
def make_trainer(engine: Any, pack: Pack, plan: str, given: Arrays, shared_trainers: Any) -> Callable[[int], Trainer]:
    """Shared trainers of the plan, each put back to its start: a session of ONNX Runtime takes longer than most tests."""

    def make(number: int) -> Trainer:
        key = engine.name, pack.manifest.optimizer, plan, number
        if key not in shared_trainers:
            made = engine.trainer(pack, plan, given)
            shared_trainers[key] = made, made.state()
        trainer, start = shared_trainers[key]
        trainer.load_state(start)
        return trainer

    return make


@pytest.fixture
def trainer(make_trainer: Callable[[int], Trainer]) -> Trainer:
    return make_trainer(0)


@pytest.fixture
def other_trainer(make_trainer: Callable[[int], Trainer]) -> Trainer:
    """A second one of the same engine, optimizer and plan."""
    return make_trainer(1)
