"""Optimizers as ONNX nodes: the guilt mask, then SGD with momentum or Adam.

Hyper-parameters are run-time scalars: ``lr``, ``gamma`` and ``step`` (1, 2, …; Adam) or ``momentum``
(SGD). State tensors are inputs ``NAME::WEIGHT`` and outputs ``new::NAME::WEIGHT``.

Of a weight with a channel budget only the chosen rows take part in a step. The other rows keep weight, momentum and
moments, and go on from them when they are chosen again. Adam's bias correction therefore counts the steps of each
channel, ``steps::WEIGHT`` [k]. ``torch.optim.SparseAdam`` uses the count of the plan: the correction has faded when a
channel is first chosen late, and as ``v`` grows slower than ``m``, its first steps would be 3 to 6.6 times too long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edge_sel.errors import UsageError
from edge_sel.graphs.builder import Builder
from edge_sel.pack.manifest import OPTIMIZER_STATE as STATE

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
GAMMA_SQUARED = "gamma_squared"
"""The tensor γ·|γ|."""

Names = Mapping[str, str | None]
"""Name of the new value of a weight or of its state; None for any name."""


def require_optimizer(name: str) -> None:
    """Raise UsageError when there is no such optimizer."""
    if name not in STATE:
        raise UsageError("unknown optimizer", where=name, fix=f"one of {', '.join(STATE)}")


class Masked(NamedTuple):
    """A gradient under the guilt mask: ``g·[|g| > γ]``, how many elements are kept, and ``g²`` of all elements."""

    gradient: str
    kept: str
    squares: str


def emit_guilt_mask(b: Builder, gradient: str) -> Masked:
    """The guilt mask (SEL: small gradients carry no guilt), as ``g² > γ·|γ|``: the squares make gradient norms too."""
    squares = b.op("Mul", gradient, gradient)
    guilty = b.op("Cast", b.op("Greater", squares, GAMMA_SQUARED), to=1)
    masked = b.op("Mul", gradient, guilty)  # onnxruntime's Where is 3 times slower
    return Masked(masked, b.op("ReduceSum", guilty, keepdims=0), squares)


def emit_update(
    b: Builder, optimizer: str, weight: str, gradient: str, index: str | None, *, rank: int, after: str
) -> None:
    """Append the update of one weight; with ``index``, of those output channels (rows) only; ``rank`` is the weight's.

    Rows that are not in the index keep their weight and their optimizer state to the bit. The scalar ``after``, a
    finite one, is computed before the weight is. Without an index the last operators write the outputs themselves: a
    copy of every weight and its state would be a sixth of an update.
    """
    names = (weight, *(f"{state}::{weight}" for state in STATE[optimizer]))
    old = {name: b.op("Gather", name, index, axis=0) if index else name for name in names}
    nothing = b.op("Mul", after, b.scalar(0.0))
    new = {name: None if index else f"new::{name}" for name in old}
    if optimizer == "sgd":
        updated = _sgd(b, weight, gradient, old, b.op("Add", "lr", nothing), new)
    else:
        scales = ("adam_scale1", "adam_scale2")
        if index is not None:
            # One count for each kernel [k, 1, 1, 1], or row [k, 1].
            scales = _bias_corrections(b, b.op("Reshape", f"steps::{weight}", b.ints(-1, *[1] * (rank - 1))))
        updated = _adam(b, weight, gradient, old, (b.op("Add", scales[0], nothing), scales[1]), new)
    if index is not None:
        for name, value in updated.items():
            b.op("ScatterND", name, b.op("Unsqueeze", index, b.ints(1)), value, name=f"new::{name}")


def _sgd(b: Builder, weight: str, gradient: str, old: dict[str, str], lr: str, names: Names) -> dict[str, str]:
    """``u ← μ·u + g``, ``w ← w − lr·u`` (torch.optim.SGD)."""
    state = f"momentum::{weight}"
    velocity = b.op("Add", b.op("Mul", old[state], "momentum"), gradient, name=names[state])
    return {weight: b.op("Sub", old[weight], b.op("Mul", velocity, lr), name=names[weight]), state: velocity}


def _adam(
    b: Builder, weight: str, gradient: str, old: dict[str, str], scales: tuple[str, str], names: Names
) -> dict[str, str]:
    """Adam (Kingma & Ba 2015).

    ``m ← β₁m + (1−β₁)g``, ``v ← β₂v + (1−β₂)g²``,
    ``w ← w − lr/(1−β₁ᵗ)·m / (√v/√(1−β₂ᵗ) + ε)``.
    """
    m, v = (f"{s}::{weight}" for s in STATE["adam"])
    added = b.op("Mul", gradient, b.scalar(1 - BETA1))
    first = b.op("Add", b.op("Mul", old[m], b.scalar(BETA1)), added, name=names[m])
    squared = b.op("Mul", b.op("Mul", gradient, gradient), b.scalar(1 - BETA2))
    second = b.op("Add", b.op("Mul", old[v], b.scalar(BETA2)), squared, name=names[v])
    denominator = b.op("Add", b.op("Mul", b.op("Sqrt", second), scales[1]), b.scalar(EPSILON))
    change = b.op("Div", b.op("Mul", first, scales[0]), denominator)
    return {weight: b.op("Sub", old[weight], change, name=names[weight]), m: first, v: second}


def emit_shared(b: Builder, optimizer: str) -> None:
    """Append the scalars that every weight's update shares."""
    b.op("Mul", "gamma", b.op("Abs", "gamma"), name=GAMMA_SQUARED)  # below 0 where the mask is off, as γ is
    if optimizer == "adam":
        _bias_corrections(b, "step", names=("adam_scale1", "adam_scale2"))


def _bias_corrections(b: Builder, steps: str, names: tuple[str | None, str | None] = (None, None)) -> tuple[str, str]:
    """``lr/(1−β₁ᵗ)`` and ``1/√(1−β₂ᵗ)``, in the shape of ``steps``."""
    one = b.scalar(1.0)
    first = b.op("Div", "lr", b.op("Sub", one, b.op("Pow", b.scalar(BETA1), steps)), name=names[0])
    second = b.op("Sub", one, b.op("Pow", b.scalar(BETA2), steps))
    return first, b.op("Reciprocal", b.op("Sqrt", second), name=names[1])
