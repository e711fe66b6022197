"""Every engine, one batch of noisy digits, and packs for both optimizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sel.arrays import Arrays
from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.engines.base import Batch, Engine, Hyper, Prefix, Scores, StepResult, Trainer
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.torch import TorchEngine
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.writer import write_pack

ENGINES = {"ort": lambda: OrtEngine(1), "torch": lambda: TorchEngine(1, device="cpu")}


class Whole:
    """An engine whose trainers take images, whether a plan has a prefix or not."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.name = engine, engine.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Any:
        trainer, prefix = self._engine.trainer(pack, plan, weights), self._engine.prefix(pack, plan, weights)
        return _WholeTrainer(trainer, prefix) if prefix else trainer


class _WholeTrainer:
    def __init__(self, trainer: Trainer, prefix: Prefix) -> None:
        self._trainer, self._prefix = trainer, prefix

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        return self._trainer.score(self._prefix(images), labels)

    def step(self, batch: Batch, hyper: Hyper) -> StepResult:
        return self._trainer.step(batch._replace(images=self._prefix(batch.images)), hyper)

    def guilt(self, batch: Batch) -> Arrays:
        return self._trainer.guilt(batch._replace(images=self._prefix(batch.images)))


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest, one_thread: None) -> Any:
    return Whole(ENGINES[request.param]())


@pytest.fixture(scope="session")
def pack(digits_pack: Pack, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Pack:
    """The built-in pack's weights with the graphs that today's compiler makes of them."""
    return _compiled(digits_pack, digits_pack.manifest.optimizer, tmp_path_factory.mktemp("digits") / "pack")


@pytest.fixture(scope="session")
def adam_pack(digits_pack: Pack, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Pack:
    """The same with Adam."""
    return _compiled(digits_pack, "adam", tmp_path_factory.mktemp("adam") / "pack")


def _compiled(digits_pack: Pack, optimizer: str, path: Path) -> Pack:
    from edge_sel.server.export import DEFAULT_PLANS, compile_plans
    from edge_sel.server.forward import export_forward

    manifest, weights = digits_pack.manifest, digits_pack.weights()
    model = TorchEngine(1, device="cpu").model(digits_pack, weights)
    forward = export_forward(model, manifest.model.image_size)
    graphs, plans, prefixes, _ = compile_plans(forward, DEFAULT_PLANS, optimizer, len(manifest.model.classes), print)
    made = dataclasses.replace(manifest, optimizer=optimizer, plans=plans, prefixes=prefixes)
    write_pack(path, made, weights, graphs)
    return open_pack(path)


@pytest.fixture(scope="session")
def batch(digits_pack: Pack) -> Batch:
    """Twelve digits with so much noise that every sample has a loss, and uneven sample weights.

    The seed keeps every ReLU's input 5e-6 away from zero, so that no engine's rounding carries one across its kink.
    """
    rng = np.random.default_rng(10)
    digits = load_digits("field")
    x = normalise(digits.read(np.arange(12)), digits_pack.manifest.model.mean, digits_pack.manifest.model.std)
    x += rng.normal(0, 1.5, x.shape).astype(np.float32)
    return Batch(x, digits.labels[:12], rng.uniform(0.5, 1.5, 12).astype(np.float32))


@pytest.fixture(scope="session")
def sgd_pack(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Pack:
    """A randomly initialised resnet-c-small for three classes, with SGD."""
    import torch

    from edge_sel.models.registry import build
    from edge_sel.server import warmup
    from edge_sel.server.export import export_pack

    folder = tmp_path_factory.mktemp("sgd")
    rng = np.random.default_rng(0)
    images = ImageSet.from_arrays(
        rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8), np.arange(12) % 3, ("a", "b", "c")
    )
    torch.manual_seed(0)
    info = warmup.WarmupInfo("resnet-c-small", images.classes, images.size, (0.5,) * 3, (0.25,) * 3, {})
    warmup.save(folder / "warm.safetensors", build(info.model, 3, info.image_size), info)
    export_pack(
        folder / "warm.safetensors",
        images,
        folder / "pack",
        optimizer="sgd",
        now=datetime(2024, 1, 1, tzinfo=timezone.utc),
    )
    return open_pack(folder / "pack")
