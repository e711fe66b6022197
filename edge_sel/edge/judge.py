"""Looks at a model: on the validation set, by which everything is decided, and on test images, by which nothing is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.batch_limit import BatchLimit
from edge_sel.edge.evaluate import BATCH, Evaluation, evaluate
from edge_sel.edge.free_memory import trim
from edge_sel.engines.base import Engine
from edge_sel.pack.reader import Pack


class Judge:
    """Evaluates weights on the images that were held back.

    Args:
        pack: holds the inference graph.
        engine: executes it.
        validation: images of the device that are not trained on.
        test: images that no decision looks at; may be None.
        phase: tells the energy recorder what the joules are spent on.
        breathe: called after each batch; may rest.
        batch_limit: of the run; lowered where memory is short.
        witnesses: training images of the same place, which judge what has not learnt from them; None for none.
    """

    def __init__(
        self,
        pack: Pack,
        engine: Engine,
        validation: ImageSet,
        test: ImageSet | None,
        phase: Callable[[str], AbstractContextManager[None]],
        breathe: Callable[[], None],
        batch_limit: BatchLimit,
        witnesses: ImageSet | None = None,
    ) -> None:
        self.validation, self.test, self.witnesses = validation, test, witnesses
        self.engine, self.batch_limit = engine, batch_limit
        self._pack, self._phase, self._breathe = pack, phase, breathe

    def validate(self, weights: Arrays) -> Evaluation:
        """The model with these weights on the validation set."""
        return self.look(weights, self.validation)

    def look_at_test(self, weights: Arrays, known: dict[str, Any]) -> dict[str, Any]:
        """Figures of the validation set, which are known, as ``guard`` and, if there are test images, theirs."""
        classes = self.validation.classes
        figures = {"guard": known}
        if self.test is not None:
            figures["test"] = self.look(weights, self.test).to_json(classes)
        return figures

    def look(self, weights: Arrays, images: ImageSet) -> Evaluation:
        """The model with these weights on any images."""

        def compute(batch_size: int) -> Evaluation:
            trim()  # its session comes on top of the trainer's
            predict = self.engine.predictor(self._pack, weights)
            return evaluate(predict, images, self._pack.manifest.model, self._breathe, batch_size=batch_size)

        with self._phase("evaluate"):
            return self.batch_limit.whole(BATCH, compute, "evaluation")
