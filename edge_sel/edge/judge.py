"""Looks at a model: on the validation set, by which everything is decided, and on test images, by which nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.edge.features.cache import known_features
from edge_sel.edge.features.precision import CHUNK, FrozenBackbone
from edge_sel.edge.memory import BatchLimit, trim
from edge_sel.edge.open import RunInputs, SplitImages
from edge_sel.engines.base import Predict
from edge_sel.errors import PackError
from edge_sel.pack.plan_kinds import RIDGE
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


# --- In a run


KEPT_IMAGES = 1000
"""Of larger sets features are not kept."""
SAME = 1e-3
"""Largest difference of logits between two graphs of a pack, relative to the largest."""


class _Features(NamedTuple):
    """Of a set of images [N, F], and a hash of the weights that they depend on."""

    by: bytes
    rows: np.ndarray


class Judge:
    """Evaluates weights on the images that were held back.

    Args:
        given: to the run: pack, engine, test images and known features.
        split: images that are held back, and those that judge beside them.
        pause_if_due: called after each batch; may rest.
        batch_limit: of the run; lowered where memory is short.
    """

    def __init__(
        self, given: RunInputs, split: SplitImages, pause_if_due: Callable[[], None], batch_limit: BatchLimit
    ) -> None:
        self.given, self.split, self.batch_limit = given, split, batch_limit
        self.validation, self.test, self._engine = split.validation, given.test, given.engine
        self._pack, self._phase, self._pause_if_due = given.pack, given.recorder.phase, pause_if_due
        self._seen: dict[int, _Features] = {}
        self._compared = False

    def validate(self, weights: Arrays) -> Evaluation:
        """The model with these weights on the validation set."""
        return self.look(weights, self.validation)

    def look_at_test(self, weights: Arrays, known: dict[str, Any]) -> dict[str, Any]:
        """Figures of the validation set, which are known, as ``validation`` and, if there are test images, theirs."""
        classes = self.validation.classes
        figures = {"validation": known}
        if self.test is not None:
            figures["test"] = self.look(weights, self.test).to_json(classes)
        return figures

    def look(self, weights: Arrays, images: ImageSet) -> Evaluation:
        """The model with these weights on any images."""

        with self._phase("evaluate"):
            held = images is self.validation or images is self.test
            if held and len(images) <= KEPT_IMAGES:
                features = self.batch_limit.whole(CHUNK, partial(self._features, weights, images), "evaluation")
                if features is not None:
                    weight, bias = self._pack.linear_head.joined(weights)
                    with np.errstate(over="ignore", invalid="ignore"):
                        logits = features @ weight.T + bias  # of a model that diverged
                    return evaluate_logits(np.where(np.isfinite(logits), logits, np.nan), images.labels)

        def compute(batch_size: int) -> Evaluation:
            trim()  # its session comes on top of the trainer's
            predict = self._engine.predictor(self._pack, weights)
            return evaluate(predict, images, self._pack.manifest.model, self._pause_if_due, batch_size=batch_size)

        with self._phase("evaluate"):
            return self.batch_limit.whole(BATCH, compute, "evaluation")

    def _features(self, weights: Arrays, images: ImageSet, chunk: int) -> np.ndarray | None:
        """What the head takes, float32 [N, F]: each image is looked at once by the same body. None without such."""
        if RIDGE not in self._pack.plan_names:
            return None
        backbone = FrozenBackbone(self._engine, self._pack, RIDGE, weights, images)
        info = backbone.info
        assert info is not None  # the plan is there only where the head has features
        by, seen = backbone.digest(info), self._seen.get(id(images))
        if seen is not None and seen.by == by:
            return seen.rows
        trim()  # its session comes on top of the trainer's
        loaded = backbone.load()
        if loaded is None:
            return None
        kept = known_features(backbone, "", self.given.shared, np.float32)
        every, plain = np.arange(len(images)), np.zeros(len(images), bool)
        rows, found = (
            (np.zeros((len(images), *info.shape), np.float32), plain) if kept is None
            else kept.read(every, plain, info.shape)
        )  # fmt: skip
        missing = np.flatnonzero(~found)
        for part in np.split(missing, range(chunk, len(missing), chunk)):
            if len(part):
                rows[part] = loaded(backbone.pixels(part))
                self._pause_if_due()
        if kept is not None and len(missing):
            kept.write(missing, plain[missing], rows[missing])
        self._seen[id(images)] = _Features(by, rows)
        del loaded  # its session
        if not self._compared:
            self._compare(weights, images, rows[:chunk])
        return rows

    def _compare(self, weights: Arrays, images: ImageSet, features: np.ndarray) -> None:
        """Whether the pack's inference graph makes of the first images what the head makes of their features.

        Raises:
            PackError: it does not.
        """
        weight, bias = self._pack.linear_head.joined(weights)
        pixels = FrozenBackbone(self._engine, self._pack, RIDGE, weights, images).pixels(np.arange(len(features)))
        whole, parts = self._engine.predictor(self._pack, weights)(pixels), features @ weight.T + bias
        known = np.isfinite(whole) & np.isfinite(parts)
        difference = np.abs(np.where(known, whole, 0) - np.where(known, parts, 0)).max()
        if difference > SAME * np.abs(np.where(known, whole, 0)).max():
            raise PackError("two graphs of the pack disagree about an image", where=self._pack.path,
                            fix="export it again")  # fmt: skip
        self._compared = True
