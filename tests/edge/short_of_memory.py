"""What a process with too little memory does; a program of its own, as a limit stays until the process ends.

Before each piece of work the process is limited to so many MB more than it has: ``python -m
tests.edge.short_of_memory WORK MB OUT`` prints what came of it as one JSON line.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import safetensors.numpy  # noqa: F401
from PIL import Image  # noqa: F401

from edge_sel.edge import memory
from edge_sel.edge.judge import evaluate
from edge_sel.edge.memory import BatchLimit
from edge_sel.edge.outputs.model_files import import_onnx
from edge_sel.edge.train.stage import estimate
from edge_sel.engines.base import Batch
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import EdgeSelError
from tests.edge.sessions import Tape, digits, pack, session

IMAGES = 400
SETTINGS = {
    "plan": "full", "batch_size": 256, "gate": "off", "curriculum": "off", "epochs": 2, "target_rate": 1.0,
}  # fmt: skip
"""A step of 256 digits takes 100 MB."""


@contextmanager
def room(megabytes: int) -> Iterator[None]:
    """This process may take so much more than it has; hard limits stay as they are."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


class CutTape(Tape):
    """Copies the run as a power failure would leave it: at the first checkpoint after each shortage."""

    def __init__(self, out: Path, to: Path) -> None:
        super().__init__()
        self.out, self.to = out, to

    def __call__(self, event: dict[str, Any]) -> None:
        super().__call__(event)
        if event["event"] == "checkpoint" and self.events[-2]["event"] == "memory_short":
            shutil.rmtree(self.to, ignore_errors=True)
            shutil.copytree(self.out, self.to)


def batch_limits(tape: Tape) -> list[int]:
    return [event["batch_limit"] for event in tape.of("memory_short")]


def run(
    megabytes: int, out: Path, *, cut: str = "", resume: bool = False, floor: int = 8, **settings: Any
) -> dict[str, Any]:
    """A session under a limit, 0 for none. ``floor``: the smallest batch. ``cut``: where to copy the run to."""
    memory.FLOOR = floor
    tape = CutTape(out, Path(cut)) if cut else Tape()
    made = session(out, images=digits(IMAGES), listener=tape, resume=resume, **SETTINGS | settings)
    with room(megabytes) if megabytes else nullcontext():
        try:
            result = made.run()
        except EdgeSelError as error:
            return {"error": str(error), "status": error.exit_code, "batch_limits": batch_limits(tape)}
    return {
        "batch_limits": batch_limits(tape), "limit": result["batch_limit"], "stopped": result["stopped"],
        "resumed": bool(tape.of("resumed")), "boundaries": len(tape.of("step")),
    }  # fmt: skip


def inference(megabytes: int, out: Path) -> dict[str, Any]:
    """Evaluation with as many images at once as there are."""
    images, limit = digits(IMAGES), BatchLimit()
    predict = OrtEngine(threads=1).predictor(pack(), pack().weights())
    expected = evaluate(predict, images, pack().manifest.model).logits
    with room(megabytes):
        found = limit.whole(
            IMAGES, lambda n: evaluate(predict, images, pack().manifest.model, batch_size=n), "evaluation"
        )
    return {"limit": limit.images, "close": bool(np.allclose(found.logits, expected, rtol=1e-4, atol=1e-4))}


def statistics(megabytes: int, out: Path) -> dict[str, Any]:
    """Two batches as large as they can be; the mean over images is the mean over parts."""
    images, limit, plan = digits(IMAGES), BatchLimit(), pack().plan("bn")
    ones, halves = np.ones(IMAGES, np.float32), np.array_split(np.arange(IMAGES), 2)
    pixels = images.read(np.arange(IMAGES)).astype(np.float32).transpose(0, 3, 1, 2) / 255
    trainer = OrtEngine(threads=1).trainer(pack(), plan.name, pack().weights())
    expected = OrtEngine(threads=1).trainer(pack(), plan.name, pack().weights())

    def batch_of(rows: np.ndarray) -> Batch:
        return Batch(pixels[rows], images.labels[rows], ones[rows])

    parts = []
    with room(megabytes):
        for before, rows in enumerate(halves):
            parts += [part.tolist() for part, _ in estimate(trainer, limit, rows, before, batch_of)]
    for before, part in enumerate(np.split(np.arange(IMAGES), IMAGES // limit.images)):
        for _ in estimate(expected, BatchLimit(), part, before, batch_of):
            pass
    means = [name for name in plan.buffers if name.endswith("mean")]
    found, wanted = trainer.weights(), expected.weights()
    return {
        "limit": limit.images, "sizes": [len(part) for part in parts], "rows": [row for part in parts for row in part],
        "first mean": bool(np.allclose(found[means[0]], wanted[means[0]], rtol=1e-4, atol=1e-5)),
    }  # fmt: skip


WORK = {"run": run, "inference": inference, "statistics": statistics}

if __name__ == "__main__":
    import_onnx()
    digits(IMAGES)  # loads what it needs
    np.ones((64, 64)) @ np.ones((64, 64))  # OpenBLAS takes its memory at first use, and ends the process without
    settings = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    print(json.dumps(WORK[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]), **settings)))
