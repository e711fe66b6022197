"""An engine that writes down what it is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sel.engines.base import Backbone, Batch, Hyper, Predict, Scores, StepResult
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.reader import Pack


class Recording:
    """The default engine; ``calls`` holds (plan, what, images or features, labels) in the order of the calls."""

    name = "ort"

    def __init__(self) -> None:
        self._engine = OrtEngine(threads=1)
        self.calls: list[tuple[str, str, np.ndarray, np.ndarray | None]] = []
        self.hypers: list[Hyper] = []
        self.loss_weights: list[np.ndarray] = []
        self.kept: list[tuple[str, int]] = []

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Any:
        return _Trainer(self, self._engine.trainer(pack, plan, weights), plan)

    def backbone(
        self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray], *, int8: tuple[float, float] | None = None
    ) -> Backbone | None:
        backbone = self._engine.backbone(pack, plan, weights, int8=int8)

        def recorded(images: np.ndarray) -> np.ndarray:
            self.calls.append((plan, "quantized" if int8 else "backbone", images.copy(), None))
            return backbone(images)

        return recorded if backbone else None

    def predictor(self, pack: Pack, weights: Mapping[str, np.ndarray]) -> Predict:
        predict = self._engine.predictor(pack, weights)

        def recorded(images: np.ndarray) -> np.ndarray:
            self.calls.append(("", "predict", images.copy(), None))
            return predict(images)

        return recorded

    def sizes(self, what: str, plan: str) -> list[int]:
        """Batch sizes of the calls of a kind in a plan."""
        return [len(images) for at, kind, images, _ in self.calls if (at, kind) == (plan, what)]

    def images(self, what: str) -> set[bytes]:
        """Every different image that was given to calls of a kind."""
        return {image.tobytes() for _, kind, images, _ in self.calls if kind == what for image in images}

    def labels(self, what: str, plan: str) -> list[int]:
        """The labels given to calls of a kind in a plan."""
        return [int(y) for at, kind, _, labels in self.calls if (at, kind) == (plan, what) for y in labels]


class _Trainer:
    def __init__(self, tape: Recording, trainer: Any, plan: str) -> None:
        self._tape, self._trainer, self._plan = tape, trainer, plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        self._tape.calls.append((self._plan, "score", images.copy(), labels.copy()))
        return self._trainer.score(images, labels)

    def step(self, batch: Batch, hyper: Hyper) -> StepResult:
        self._tape.calls.append((self._plan, "step", batch.images.copy(), batch.labels.copy()))
        self._tape.hypers.append(hyper)
        self._tape.loss_weights.append(batch.weights.copy())
        result = self._trainer.step(batch, hyper)
        self._tape.kept.append((self._plan, result.kept))
        return result

    def guilt(self, batch: Batch) -> Any:
        self._tape.calls.append((self._plan, "guilt", batch.images.copy(), batch.labels.copy()))
        return self._trainer.guilt(batch)
