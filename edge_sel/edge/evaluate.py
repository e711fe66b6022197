"""Accuracy, embarrassment and confidence of a model on a set of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.engines.base import Predict
from edge_sel.sel.calibration import calibration_error
from edge_sel.sel.embarrassment import class_embarrassment, confidence, cross_entropy

BATCH = 16
"""More images take more memory and no less time."""


class Normalisation(Protocol):
    """What a model says of its images: a manifest's model, or a classifier."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each colour, 0..1."""

    @property
    def std(self) -> tuple[float, ...]:
        """Likewise."""


@dataclass(frozen=True)
class Evaluation:
    """Per-class arrays are [classes]; NaN for a class without images.

    Attributes:
        accuracy: share of the images classified correctly, 0..1.
        loss: mean cross-entropy in nats.
        calibration_error: expected calibration error, 0..1.
        embarrassment: E_c at T = 1.5.
        class_accuracy: share correct per class.
        images: how many images.
        logits: float32[N, C] of each.
    """

    accuracy: float
    loss: float
    calibration_error: float
    embarrassment: np.ndarray
    class_accuracy: np.ndarray
    images: int
    logits: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """C_c = max(0, 1 − E_c)."""
        values: np.ndarray = confidence(self.embarrassment)
        return values

    @property
    def mean_embarrassment(self) -> float:
        """Over the classes that occur, in nats; NaN where the model diverged."""
        return float(self.embarrassment[np.isfinite(self.class_accuracy)].mean())

    def to_json(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Numbers per class by name; classes without images are left out."""
        present = [i for i in range(len(classes)) if np.isfinite(self.class_accuracy[i])]
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "embarrassment": self.mean_embarrassment,
            "images": self.images,
            "classes": {
                classes[i]: {
                    "accuracy": float(self.class_accuracy[i]),
                    "embarrassment": float(self.embarrassment[i]),
                    "confidence": float(self.confidence[i]),
                }
                for i in present
            },
        }


def evaluate(
    predict: Predict,
    images: ImageSet,
    model: Normalisation,
    between: Callable[[], None] = lambda: None,
    *,
    batch_size: int = BATCH,
) -> Evaluation:
    """Run the model over every image once; ``between`` is called after each batch.

    Raises:
        MemoryError: a batch does not fit into memory.
    """
    logits = []
    for start in range(0, len(images), batch_size):
        chunk = np.arange(start, min(start + batch_size, len(images)))
        logits.append(predict(normalise(images.read(chunk), model.mean, model.std)))
        between()
    return evaluate_logits(np.concatenate(logits), images.labels)


def evaluate_logits(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    """The figures of logits [N, classes] against labels [N]."""
    classes = logits.shape[1]
    correct = logits.argmax(1) == labels
    counts = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels, weights=correct, minlength=classes)
    return Evaluation(
        accuracy=float(correct.mean()),
        loss=float(cross_entropy(logits, labels).mean()),
        calibration_error=calibration_error(logits, labels),
        embarrassment=class_embarrassment(logits, labels, classes),
        class_accuracy=np.where(counts > 0, hits / np.maximum(counts, 1), np.nan),
        images=len(labels),
        logits=logits.astype(np.float32, copy=False),
    )
