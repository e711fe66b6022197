"""The frozen prefix of a plan: where its forward pass is cut in two, and both halves.

What comes before the cut gives the same features for an image however long the plan trains, so once is enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

import onnx
from onnx import TensorProto, helper

from edge_sel.graphs.builder import Builder
from edge_sel.graphs.executed_flops import node_flops
from edge_sel.graphs.ir import BATCH, Forward, Node, live_nodes
from edge_sel.graphs.plans import Plan, head_names, running_statistics

MIN_SHARE = 0.1
"""Least share of the forward pass that a prefix must save: a stem is cheaper to compute again than to keep."""

NEARLY_ALL = 0.8
"""A cut with smaller features is preferred if its prefix still saves this share of what the latest one's would."""


@dataclass(frozen=True)
class Cut:
    """A tensor through which everything passes that the image contributes to the logits.

    Attributes:
        tensor: its name in the forward graph.
        shape: of one image's features, without the batch axis.
        constants: initializers that the features depend on: weights, statistics and the exporter's own.
    """

    tensor: str
    shape: tuple[int, ...]
    constants: tuple[str, ...]


def find_cut(forward: Forward, plan: Plan) -> Cut | None:
    """Where this plan is cut; None where too little comes before the first thing that changes, or nothing trains.

    Nothing before a cut depends on what the plan changes, no weight serves on both sides, and the logits depend on the
    image through it alone: in a residual network only what follows a join will do. Of those the latest, or one that
    is hardly earlier and smaller; where only the head is trained, what the head takes.
    """
    changing = {*plan.trainable, *plan.buffers}
    weights = {*forward.parameters, *running_statistics(forward)}
    found = []
    for node in forward.nodes[:-1] if plan.trainable else ():
        tensor = node.outputs[0]
        shape = forward.shape(tensor)[1:]
        if tensor not in forward.per_image or not shape or None in shape:
            continue
        before = live_nodes(forward.nodes, tensor)
        ours = _read(before)
        theirs = _read(live_nodes(forward.nodes, forward.logits, known=tensor))
        if forward.input not in ours or forward.input in theirs or ours.keys() & changing:
            continue
        constants = tuple(name for name in ours if name in forward.initializers)
        if not any(name in theirs and name in weights for name in constants):
            flops = sum(node_flops(node, forward.shapes) for node in before)
            found.append((Cut(tensor, tuple(size or 0 for size in shape), constants), flops))
    least = MIN_SHARE * sum(node_flops(node, forward.shapes) for node in forward.nodes)
    only_head = set(plan.trainable) <= set(head_names(forward))
    share = 1.0 if only_head else NEARLY_ALL  # the closed form needs what the head itself takes
    least = max(least, share * max((flops for _, flops in found), default=0))
    late = [cut for cut, flops in reversed(found) if flops >= least]
    if only_head:  # a vector rather than the same as a map of one pixel
        return next((cut for cut in late if len(cut.shape) == 1), late[0] if late else None)
    return min(late, key=lambda cut: prod(cut.shape), default=None)


def compile_prefix(forward: Forward, cut: Cut) -> onnx.ModelProto:
    """Image in, features out: ``x`` [batch, 3, H, W] to ``features`` [batch, …]; all weights are constants."""
    b = Builder()
    for node in live_nodes(forward.nodes, cut.tensor):
        b.copy(node)
    b.op("Identity", cut.tensor, name="features")
    image = [BATCH, *forward.shape(forward.input)[1:]]
    inputs = [helper.make_tensor_value_info(forward.input, TensorProto.FLOAT, image)]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [BATCH, *cut.shape])]
    return b.model(inputs, outputs, forward.initializers, "prefix")


def tail(forward: Forward, cut: Cut | None) -> Forward:
    """The forward graph from the cut on, its image input replaced by the features; the whole of it without a cut."""
    if cut is None:
        return forward
    nodes = tuple(
        replace(node, inputs=tuple(forward.input if name == cut.tensor else name for name in node.inputs))
        for node in live_nodes(forward.nodes, forward.logits, known=cut.tensor)
    )
    used = _read(nodes)
    initializers = {name: value for name, value in forward.initializers.items() if name in used}
    shapes = {**forward.shapes, forward.input: forward.shape(cut.tensor)}
    parameters = forward.parameters & initializers.keys()
    return replace(forward, nodes=nodes, initializers=initializers, shapes=shapes, parameters=parameters)


def _read(nodes: Iterable[Node]) -> dict[str, None]:
    """Names that these nodes read, in order."""
    return {name: None for node in nodes for name in node.inputs if name}
