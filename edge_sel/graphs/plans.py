"""Update plans: which weights a training graph changes, read off the forward graph's own structure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from edge_sel.errors import GraphError, UsageError
from edge_sel.graphs.ir import Forward, Node, readers_of
from edge_sel.pack.manifest import DEEP_HEAD
from edge_sel.pack.plan_kinds import limits_heads, split_plan_name

PLANS = ("bn", "head", "affine", "last", "last2", "first", "full")
LARGE = 128
"""Pixels aside beyond which ``full`` takes statistics as they are. By those of its batches it was undone each time that
it was tried on a few hundred photographs of 224 pixels, with 2 GB for 32 images."""
_OF_ONE = ("Identity", "Relu", "GlobalAveragePool", "ReduceMean", "Flatten", "Squeeze")
_KEEP_CLASSES = (*_OF_ONE, "Add", "Mul", "Div")
"""Operators that leave each class on its own; the first take one tensor, the others may join two."""
QUERY_KEY_VALUE = 3
"""One linear layer of attention makes all three; its rows are [3, heads, rows of a head]."""
_NORMS = ("BatchNormalization", "LayerNormalization")


@dataclass(frozen=True)
class Plan:
    """What may change.

    Attributes:
        name: ``last``; or ``last-c25`` for 25 % of the output channels of each convolution, ``last-h25`` for 25 % of
            the attention heads of each layer.
        trainable: initializers that get a gradient, in forward order.
        bn_mode: ``batch`` (statistics of the batch, running statistics updated) or ``frozen``.
        channels: weight → number of guilty output channels (rows of guilty heads), for budgeted plans.
        buffers: running statistics that the plan changes.
        heads: trained weights of attention and their number of heads; see ``attention_heads``.
    """

    name: str
    trainable: tuple[str, ...]
    bn_mode: str
    channels: dict[str, int] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    heads: dict[str, int] = field(default_factory=dict)


def make_plan(forward: Forward, name: str) -> Plan:
    """The named plan for this graph.

    ``bn`` re-estimates running statistics and has no backward pass; ``head`` is the last linear layer; ``affine``
    every normalisation's scale and shift, and the head; ``last`` and ``last2`` everything at the final one or two
    map sizes; ``first`` the stem, the first block and the head; ``full`` everything, with statistics of the batch where
    images are small.

    Raises:
        UsageError: no such plan.
        GraphError: the graph has nothing that the plan could train.
    """
    base, budget = split_plan_name(name)
    if base not in PLANS:
        raise UsageError("unknown plan", where=name, fix=f"one of {', '.join(PLANS)}, or such as last-c25, last-h25")
    trainable = _trainable(forward, base)
    small = all((size or 0) <= LARGE for size in forward.shape(forward.input)[2:])
    bn_mode = "batch" if base == "bn" or (base == "full" and small) else "frozen"
    buffers = running_statistics(forward) if bn_mode == "batch" else ()
    if not trainable and not buffers:
        raise GraphError(f"plan {base} finds nothing to change in this graph")
    heads = {weight: count for weight, count in attention_heads(forward).items() if weight in trainable}
    channels: dict[str, int] = {}
    if budget is not None:
        channels = _head_rows(forward, heads, budget) if limits_heads(name) else _channels(forward, trainable, budget)
        if not channels:
            what = "attention heads" if limits_heads(name) else "convolution"
            raise GraphError(f"plan {name} finds no {what} to limit in this graph")
    return Plan(name, trainable, bn_mode, channels, buffers, heads)


def _channels(forward: Forward, trainable: tuple[str, ...], budget: float) -> dict[str, int]:
    """How many output channels of each plain or depthwise convolution: only these have a gradient of some channels."""
    found = {}
    for node in forward.nodes:
        if node.op == "Conv" and node.inputs[1] in trainable:
            group = node.attribute("group", 1)
            out, channels_in_group = forward.initializers[node.inputs[1]].shape[:2]
            if group == 1 or (channels_in_group == 1 and group == out):
                found[node.inputs[1]] = max(1, round(budget * out))
    return found


def _head_rows(forward: Forward, heads: dict[str, int], budget: float) -> dict[str, int]:
    """How many rows the queries, keys and values of so many heads have."""
    rows = {weight: forward.initializers[weight].shape[0] // count for weight, count in heads.items()}
    assert all(size % QUERY_KEY_VALUE == 0 for size in rows.values())
    return {weight: rows[weight] * max(1, round(budget * count)) for weight, count in heads.items()}


def with_probes(names: Iterable[str]) -> tuple[str, ...]:
    """The names, and before a plan with a channel budget the one without, whose gradients choose the channels."""
    return tuple(dict.fromkeys(part for name in names for part in (split_plan_name(name)[0], name)))


def running_statistics(forward: Forward) -> tuple[str, ...]:
    """Names of the running means and variances, in forward order."""
    return tuple(name for node in forward.nodes if node.op == "BatchNormalization" for name in node.inputs[3:5])


def head_names(forward: Forward) -> tuple[str, ...]:
    """Weights and biases of what makes the logits; the first axis of each is that of the classes.

    Mostly one linear layer. It may also be a 1×1 convolution that is averaged over the map, or a mean of several.

    Raises:
        GraphError: the logits come from something else.
    """
    return tuple(dict.fromkeys(name for node in head_layers(forward) for name in node.inputs[1:]))


def head_layers(forward: Forward) -> list[Node]:
    """The linear layers and 1×1 convolutions whose outputs, averaged or added up, are the logits; in the graph's order.

    Raises:
        GraphError: something else is between them and the logits.
    """
    layers = {id(node) for node in behind_the_body(forward) if _is_linear(forward, node)}
    return [node for node in forward.nodes if id(node) in layers]


def rectified(forward: Forward) -> bool:
    """Whether ReLU stands between the head and the logits."""
    return any(node.op == "Relu" for node in behind_the_body(forward))


def behind_the_body(forward: Forward) -> list[Node]:
    """The layers of the head, and what makes the logits of them."""
    made = {name: node for node in forward.nodes for name in node.outputs}
    waiting, passed = [forward.logits], []
    while waiting:
        name = waiting.pop(0)
        node = made.get(name)
        if node is None:
            raise GraphError("the logits must come from a linear layer", where=name)
        passed.append(node)
        if _is_linear(forward, node):
            continue
        if node.op not in _KEEP_CLASSES:
            raise GraphError("the logits must come from a linear layer", where=f"{node.op} {node.name}")
        waiting += [given for given in node.inputs if given in made][: 1 if node.op in _OF_ONE else None]
    return passed


def _is_linear(forward: Forward, node: Node) -> bool:
    """A layer with one row of its weight for each class."""
    weights = [forward.initializers.get(name) for name in node.inputs[1:]]
    if any(value is None for value in weights) or not weights or weights[0] is None:
        return False
    if node.op == "Gemm":
        return bool(node.attribute("transB", 0))
    return node.op == "Conv" and weights[0].shape[2:] == (1, 1) and node.attribute("group", 1) == 1


def _trainable(forward: Forward, base: str) -> tuple[str, ...]:
    chosen = set(head_names(forward))
    if base == "bn":
        return ()
    if base == "full":
        chosen.update(parameters(forward))
    elif base == "affine":
        chosen.update(name for node in forward.nodes if node.op in _NORMS for name in node.inputs[1:3])
    elif base == "first":
        chosen.update(*blocks(forward)[:2])
    elif base != "head":
        chosen.update(*stages(forward)[-1 if base == "last" else -2 :])
    return tuple(name for name in parameters(forward) if name in chosen)


def parameters(forward: Forward) -> tuple[str, ...]:
    """Trainable initializers (weights, biases, scales, shifts), in forward order."""
    return tuple(dict.fromkeys(name for node in forward.nodes for name in node_parameters(forward, node)))


def node_parameters(forward: Forward, node: Node) -> tuple[str, ...]:
    """The node's own trainable initializers."""
    names = node.inputs[:3] if node.op in _NORMS else node.inputs
    return tuple(n for n in names if n in forward.parameters)


def stages(forward: Forward) -> list[list[str]]:
    """Parameters grouped by the map size they work at; in thirds where the map size hardly changes (transformers)."""
    groups: list[list[str]] = []
    size: object = None
    for node in forward.nodes:
        names = node_parameters(forward, node)
        if not names:
            continue
        shape = forward.shape(node.outputs[0])
        # A linear layer belongs to the last map size, and so does one pixel: the gate of a squeeze-and-excite block.
        here = shape[2] if len(shape) == 4 and shape[2] != 1 else size
        if not groups or here != size:
            groups.append([])
        size = here
        groups[-1].extend(names)
    if len(groups) >= 3:
        return groups
    ordered = blocks(forward)
    third = max(1, len(ordered) // 3)
    parts = [ordered[: -2 * third], ordered[-2 * third : -third], ordered[-third:]]
    return [[name for block in part for name in block] for part in parts if part]


def blocks(forward: Forward) -> list[list[str]]:
    """Parameters grouped by module path up to its first run of numbers (``layer1.0``, ``features.3``).

    A group without a matrix or kernel (a normalisation on its own) joins the one before it, and so does the deep head.
    """
    grouped: dict[str, list[str]] = {}
    for name in parameters(forward):
        match = re.match(r"(.*?\d+(?:\.\d+)*)\.", name)
        grouped.setdefault(match[1] if match else name.split(".")[0], []).append(name)
    merged: list[list[str]] = []
    for names in grouped.values():
        small = all(forward.initializers[n].ndim < 2 for n in names)
        if merged and (small or names[0].startswith(f"{DEEP_HEAD}.")):
            merged[-1].extend(names)
        else:
            merged.append(names)
    return merged


def attention_heads(forward: Forward) -> dict[str, int]:
    """How many heads each linear layer serves that makes query, key and value together; by the name of its weight.

    Such a weight [3·H·D, I] is transposed, multiplied with the tokens, and what comes out is cut into [3, H, D] on its
    way to a softmax. Attention of another form is not found.
    """
    readers = readers_of(forward.nodes)
    found = {}
    for node in forward.nodes:
        if node.op == "Transpose" and node.inputs[0] in forward.parameters:
            heads = _heads(forward, readers, node)
            if heads and _reaches_softmax(readers, node.outputs[0], forward):
                found[node.inputs[0]] = heads
    return found


def _heads(forward: Forward, readers: dict[str, list[Node]], transpose: Node) -> int:
    """Of the layer that multiplies with this; 0 if what it makes is not cut into queries, keys and values of heads."""
    rows, name = forward.shape(transpose.inputs[0])[0], transpose.outputs[0]
    for op in ("MatMul", "Add", "Reshape"):
        after = readers.get(name, [])
        if len(after) == 1 and after[0].op == op:
            name = after[0].outputs[0]
        elif op != "Add":  # a layer may have no bias
            return 0
    *_, parts, heads, size = (0, 0, 0, *forward.shape(name))
    fits = heads and size and parts == QUERY_KEY_VALUE and rows == QUERY_KEY_VALUE * heads * size
    return int(heads or 0) if fits else 0


def _reaches_softmax(readers: dict[str, list[Node]], name: str, forward: Forward) -> bool:
    """Before the next layer that has weights of its own, but for the bias of this one."""
    waiting, seen = [name], {name}
    while waiting:
        for node in readers.get(waiting.pop(), []):
            if node.op == "Softmax":
                return True
            weighted = node.op != "Add" and any(given in forward.parameters for given in node.inputs)
            if node.op not in ("Conv", "Gemm", "LayerNormalization") and not weighted:
                waiting += [out for out in node.outputs if out not in seen]
                seen.update(node.outputs)
    return False
