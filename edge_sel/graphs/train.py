"""Compile a plan: forward graph in, training-step and scoring graphs out, in standard ONNX operators only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
from onnx import TensorProto, helper

from edge_sel.graphs import optimizers
from edge_sel.graphs.backward import Differentiator, emit_loss, emit_weighted_cross_entropy
from edge_sel.graphs.builder import Builder
from edge_sel.graphs.ir import BATCH, CLASSES, Forward
from edge_sel.graphs.plans import Plan, head_names
from edge_sel.pack.manifest import OPTIMIZER_SCALARS, OPTIMIZER_STATE


def compile_train(forward: Forward, plan: Plan, optimizer: str) -> onnx.ModelProto:
    """The training step of a plan, on the whole forward graph or on its tail behind the plan's frozen backbone.

    Inputs: ``x`` [batch, 3, H, W], or the features that a tail begins with, ``labels`` int64 [batch],
    ``sample_weight`` [batch], the optimizer's scalars, ``bn_momentum`` (batch statistics), every trainable weight and
    its optimizer state, running statistics that change, and for limited weights ``index::WEIGHT`` int64 [k] and, with
    Adam, ``steps::WEIGHT`` [k]: how many steps each of these channels has taken part in, with this one. Outputs:
    ``loss`` [batch], ``logits``, ``new::…`` for everything that changes, ``kept`` (how many gradient elements passed
    the guilt mask) and, in plans without a budget, ``guilt::WEIGHT`` [O], the gradient norm of each output channel of
    each convolution and of each row of the attention's queries, keys and values.

    Raises:
        GraphError: an operator on the way has no gradient rule; the message names it.
        UsageError: unknown optimizer.
    """
    optimizers.require_optimizer(optimizer)
    d = Differentiator(forward, plan.trainable, bn_mode=plan.bn_mode, channels=plan.channels)
    d.emit_forward()
    extra: list[str] = []
    if plan.trainable:
        gradients = d.emit_backward(emit_weighted_cross_entropy(d, forward.logits), plan.trainable)
        extra = _emit_updates(d, forward, plan, optimizer, gradients)
    else:
        emit_loss(d, forward.logits)
    shapes = state_shapes(forward, plan, optimizer)
    inputs = _image_inputs(forward, ["labels"])
    if plan.trainable:
        inputs.append(_float("sample_weight", [BATCH]))
        inputs += [_float(name, []) for name in OPTIMIZER_SCALARS[optimizer]]
    if plan.buffers:
        inputs.append(_float("bn_momentum", []))
    inputs += [_float(name, shape) for name, shape in shapes.items()]
    inputs += [_float(n, weight_shape(forward, n)) for n in head_names(forward) if n not in shapes]
    inputs += [_int(f"index::{weight}", [count]) for weight, count in plan.channels.items()]
    if optimizer == "adam":
        inputs += [_float(f"steps::{weight}", [count]) for weight, count in plan.channels.items()]
    outputs = [_float("loss", [BATCH]), _float(forward.logits, [BATCH, CLASSES])]
    outputs += [_float(f"new::{name}", shape) for name, shape in shapes.items()]
    outputs += [_float(name, [None] if name.startswith("guilt::") else []) for name in extra]
    return d.model(inputs, outputs, forward.initializers, f"train-{plan.name}")


def compile_score(forward: Forward, changing: Iterable[str]) -> onnx.ModelProto:
    """Forward (or its tail) and per-sample loss, statistics frozen; ``changing`` weights and the head are inputs."""
    b = _copied(forward)
    emit_loss(b, forward.logits)
    inputs = _image_inputs(forward, ["labels"])
    inputs += [_float(n, weight_shape(forward, n)) for n in dict.fromkeys((*changing, *head_names(forward)))]
    outputs = [_float("loss", [BATCH]), _float(forward.logits, [BATCH, CLASSES])]
    return b.model(inputs, outputs, forward.initializers, "score")


def compile_eval(forward: Forward) -> onnx.ModelProto:
    """Inference: image in, logits out. The head is an input, so that a device may add classes."""
    inputs = _image_inputs(forward, [])
    inputs += [_float(name, weight_shape(forward, name)) for name in head_names(forward)]
    return _copied(forward).model(inputs, [_float(forward.logits, [BATCH, CLASSES])], forward.initializers, "eval")


def _copied(forward: Forward) -> Builder:
    b = Builder()
    for node in forward.nodes:
        b.copy(node)
    return b


def weight_shape(forward: Forward, name: str) -> list[int | str]:
    """Shape of a weight, its class axis symbolic."""
    shape: list[int | str] = list(forward.initializers[name].shape)
    if name in head_names(forward):
        shape[0] = CLASSES
    return shape


def state_shapes(forward: Forward, plan: Plan, optimizer: str) -> dict[str, list[int | str]]:
    """Everything that a step reads and writes: weights, their optimizer state, running statistics."""
    shapes = {name: weight_shape(forward, name) for name in plan.trainable}
    for state in OPTIMIZER_STATE[optimizer]:
        shapes.update({f"{state}::{name}": shapes[name] for name in plan.trainable})
    shapes.update({name: weight_shape(forward, name) for name in plan.buffers})
    return shapes


def _emit_updates(b: Builder, forward: Forward, plan: Plan, optimizer: str, gradients: dict[str, str]) -> list[str]:
    """Mask, count and apply; returns the names of the extra outputs.

    ONNX Runtime works towards the outputs whose nodes stand last, first. So the head, whose gradient is known first,
    stands last, the number of kept elements before all updates, and an update waits for its own count: each gradient
    is used up as soon as it is known, and a step of resnet18 takes 40 MB less.
    """
    optimizers.emit_shared(b, optimizer)
    masked = {weight: optimizers.emit_guilt_mask(b, gradients[weight]) for weight in plan.trainable}
    b.op("Sum", *(each.kept for each in masked.values()), name="kept")
    extra = ["kept"]
    for weight, each in masked.items():
        index = f"index::{weight}" if weight in plan.channels else None
        rank = forward.initializers[weight].ndim
        optimizers.emit_update(b, optimizer, weight, each.gradient, index, rank=rank, after=each.kept)
        if not plan.channels and (rank == 4 or weight in plan.heads):
            rows = b.op("Reshape", each.squares, b.ints(0, -1))  # ReduceL2 is 3 times slower
            extra.append(b.op("Sqrt", b.op("ReduceSum", rows, b.ints(1), keepdims=0), name=f"guilt::{weight}"))
    return extra


def _image_inputs(forward: Forward, labels: list[str]) -> list[onnx.ValueInfoProto]:
    image = _float(forward.input, [BATCH, *forward.shape(forward.input)[1:]])
    return [image, *(_int(name, [BATCH]) for name in labels)]


def _float(name: str, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _int(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)
