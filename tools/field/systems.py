"""The systems that are compared, by name: options of ``field_opponents.py`` and of ``edge-sel finetune``."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from edge_sel.config.schema import nearest
from edge_sel.errors import UsageError
from edge_sel.pack.manifest import MANIFEST
from edge_sel.server.batches import has_bf16
from field.cells import Cell, Sizes, Start
from field.experts import expert_of, other_place

# Optimizer and step size of each opponent, by the mean accuracy on the validation images of low_light and colour_cast,
# seed 0: the best of Adam 1e-4 to 3e-3 (head: to 3e-2) and SGD 1e-3 to 1e-1 (head: to 3) in half decades. Dense was
# tried with two epochs; with ten, half the step was better, and with one neither a larger step nor Adam. The last
# stage loses accuracy with ten epochs, so it gets three.
DENSE = ("sgd", 3e-3)
DENSE_LONG = ("sgd", 1.5e-3)
LAST = ("sgd", 3e-3)
HEAD = ("sgd", 1.0)


ROBUST = "+robust"
"""Behind a name: the same from the checkpoint or pack of a camera-randomised pretraining."""
BF16 = ["--bf16"] if has_bf16() else []
"""What the opponents compute in, where the chip multiplies bfloat16: it is as accurate here, and cheaper."""


def _torch(method: str, epochs: int, optimizer: str, rate: float) -> list[str]:
    return [method, "--epochs", str(epochs), "--optimizer", optimizer, "--lr", str(rate), *BF16]


SCHEDULES = ("dense-1", "dense-2", "dense-3", "dense-5")
"""The cheapest good one of these is what we compare with."""
REFERENCE = "dense-10"
"""What a user would write, and what all others are compared with."""
SHIPPED = "as-shipped"
"""The pack's own weights: no process at all."""

TORCH: dict[str, list[str]] = {
    REFERENCE: _torch("dense", 10, *DENSE_LONG),
    **{name: _torch("dense", int(name[6:]), *DENSE) for name in SCHEDULES},
    "dense-1-fp32": ["dense", "--epochs", "1", "--optimizer", DENSE[0], "--lr", str(DENSE[1])],
    "head": _torch("head", 10, *HEAD),
    "bn": ["bn", *BF16],
    "last": _torch("last", 3, *LAST),
}

OURS: dict[str, list[str]] = {
    "ours-bn": ["--plan", "bn"],
    "ours-closed": ["--plan", "closed_form"],
    "ours-head": ["--plan", "bn,head"],
    "ours-full": ["--plan", "closed_form,full", "--epochs", "1"],
    "ours-full-random": ["--plan", "closed_form,full", "--epochs", "1", "--gate", "random"],
    "ours-fifth": ["--plan", "ridge,full", "--epochs", "2", "--target-rate", "0.2"],
    "ours-fifth-random": ["--plan", "ridge,full", "--epochs", "2", "--target-rate", "0.2", "--gate", "random"],
    "ours-expert": ["--plan", "auto"],
    "ours-other-expert": ["--plan", "auto"],
    "auto": ["--plan", "auto"],
    "auto-max": ["--plan", "auto", "--min-gain-per-kj", "0"],
}

EXPERTS = {"ours-expert": False, "ours-other-expert": True}
"""Which of ours begin with an expert of the server, and whether it is one for another place."""

BOTH = (SHIPPED, *TORCH, *OURS)
ALL = (*BOTH, *(name + ROBUST for name in BOTH if name not in (REFERENCE, "dense-1-fp32")))
SHORT = (SHIPPED, "dense-1", "head", "bn", "auto")


def is_robust(name: str) -> bool:
    """Whether a system starts from the camera-randomised pretraining."""
    return name.endswith(ROBUST)


def options(name: str) -> list[str]:
    """The options behind a name; ``last@sgd:0.01:3`` is last with another optimizer, step size and number of epochs.

    Raises:
        UsageError: no such system.
    """
    base, _, changed = name.removesuffix(ROBUST).partition("@")
    if base not in BOTH:
        raise UsageError(f"no system is called {base!r}: did you mean {nearest(base, BOTH)}?")
    if not changed:
        return [] if base == SHIPPED else [*(TORCH | OURS)[base]]
    try:
        method, _, usual, *_ = TORCH[base]
        optimizer, rate, *epochs = changed.split(":")
        return _torch(method, int(*epochs or [usual]), optimizer, float(rate))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"not trained in torch: {name}", fix="for example dense-2@sgd:0.01") from error


def expert_place(name: str, cell: Cell) -> Cell | None:
    """The place that the expert of a system is for; None for a system without."""
    other = EXPERTS.get(name.removesuffix(ROBUST))
    return None if other is None else other_place(cell) if other else cell


def command(name: str, cell: Cell, start: Start, threads: int, out: Path) -> list[str]:
    """The command line of a system: one process that reads the folder and leaves ``weights.safetensors`` in ``out``."""
    common = ["--data", str(cell.field), "--out", str(out), "--seed", str(cell.seed), "--threads", str(threads)]
    if name.removesuffix(ROBUST) in OURS:
        new = ["--new-classes", "extend"] if cell.shift == "unseen_class" else []
        place = expert_place(name, cell)
        new += [] if place is None else ["--expert", str(expert_of(place, start))]
        return [sys.executable, "-m", "edge_sel", "finetune", str(start.pack), *common, *new, *options(name), "--json"]
    script = Path(__file__).parents[1] / "field_opponents.py"
    return [sys.executable, str(script), *options(name), "--checkpoint", str(start.checkpoint), *common]


def digest(name: str, start: Start, sizes: Sizes, threads: int) -> str:
    """What a run depends on besides its cell: the system's options, its start, the images' numbers, the threads."""
    used = start.checkpoint
    if name.removesuffix(ROBUST) in (*OURS, SHIPPED):
        used = start.pack / MANIFEST if start.pack.is_dir() else start.pack
    known = [options(name), hashlib.sha256(used.read_bytes()).hexdigest(), sizes, threads]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:8]
