"""Give the weights of a foreign graph the names of layers, and each layer its own."""

from __future__ import annotations

import re
from dataclasses import replace

from edge_sel.graphs.ir import Forward, Node

_WEIGHT_PLACES = {
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "MatMul": ("weight",),
    "BatchNormalization": ("scale", "shift", "mean", "variance"),
    "InstanceNormalization": ("scale", "shift"),
    "LayerNormalization": ("scale", "shift"),
    "GroupNormalization": ("scale", "shift"),
    "PRelu": ("slope",),
}
"""What the operands of an operator are, from the second on (for a MatMul whichever is constant)."""
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_RESERVED = frozenset(
    ("x", "logits", "labels", "sample_weight", "loss", "features", "kept", "lr", "gamma", "momentum", "bn_momentum",
     "step")
)  # fmt: skip
_OF_A_STEP = re.compile(r"const_\d+|\w+_\d+_\d+|.*::.*")
"""Names that ``graphs.builder`` makes."""
_A_PATH = re.compile(r"[A-Za-z_][\w]*(\.\w+)+")
"""Names as torch gives them, such as ``layer1.0.conv1.weight``."""


def name_weights(forward: Forward) -> Forward:
    """The graph with its weights and running statistics under the names of layers.

    A weight is a float operand of a convolution, a product or a normalisation; behind the first of these also one of
    more than one element of an addition or a multiplication. Names that are paths stay as they are; another becomes
    ``layerN.weight``, N counting the layers. Each layer gets weights of its own.
    """
    forward = _unreserved(_unshared(forward))
    roles: dict[str, tuple[int, str]] = {}
    layer = 0
    for node in forward.nodes:
        found = _weights_of(forward, node, behind=layer > 0)
        layer += bool(found) and node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        for name, role in found.items():
            roles.setdefault(name, (max(layer, 1), role))
    new: dict[str, str] = {}
    taken = set(forward.shapes) | set(forward.initializers)
    for name, (number, role) in roles.items():
        fresh = f"layer{number}.{role}"
        while fresh in taken:
            fresh += "_"
        new[name] = name if _A_PATH.fullmatch(name) else fresh
        taken.add(new[name])
    parameters = {new[n] for n, (_, role) in roles.items() if role not in ("mean", "variance")}
    return _renamed(forward, new, frozenset(parameters))


def _unshared(forward: Forward) -> Forward:
    """A weight of its own for each layer: exporters store equal tensors once, such as biases that are all zero."""
    initializers, shapes = dict(forward.initializers), dict(forward.shapes)
    seen: set[str] = set()
    nodes = []
    for number, node in enumerate(forward.nodes):
        new = {}
        for name in _weights_of(forward, node, behind=True):
            if name in seen:
                new[name] = f"{name}::{number}"
                initializers[new[name]], shapes[new[name]] = initializers[name], initializers[name].shape
            seen.add(name)
        nodes.append(replace(node, inputs=tuple(new.get(name, name) for name in node.inputs)))
    return replace(forward, nodes=tuple(nodes), initializers=initializers, shapes=shapes)


def _unreserved(forward: Forward) -> Forward:
    """The same with other names for tensors that are called as a compiled step calls its own."""
    taken = {name for node in forward.nodes for name in (*node.inputs, *node.outputs)}
    new = {}
    for name in sorted(taken - {forward.input, forward.logits}):
        if name in _RESERVED or _OF_A_STEP.fullmatch(name):
            fresh = f"{name}_"
            while fresh in taken:
                fresh += "_"
            new[name] = fresh
            taken.add(fresh)
    return _renamed(forward, new, forward.parameters) if new else forward


def _weights_of(forward: Forward, node: Node, *, behind: bool) -> dict[str, str]:
    floats = [
        name for name in node.inputs if name in forward.initializers and forward.initializers[name].dtype.kind == "f"
    ]
    if node.op == "MatMul":
        return dict.fromkeys(floats, "weight")
    if node.op in _WEIGHT_PLACES:
        places = zip(node.inputs[1:], _WEIGHT_PLACES[node.op], strict=False)
        return {name: role for name, role in places if name in floats}
    if node.op in _ARITHMETIC and behind:
        return {name: node.op.lower() for name in floats if forward.initializers[name].size > 1}
    return {}


def _renamed(forward: Forward, new: dict[str, str], parameters: frozenset[str]) -> Forward:
    nodes = tuple(
        replace(node, inputs=tuple(new.get(name, name) for name in node.inputs),
                outputs=tuple(new.get(name, name) for name in node.outputs))
        for node in forward.nodes
    )  # fmt: skip
    per_image = frozenset(new.get(name, name) for name in forward.per_image)
    initializers = {new.get(name, name): value for name, value in forward.initializers.items()}
    shapes = {new.get(name, name): shape for name, shape in forward.shapes.items()}
    return replace(forward, nodes=nodes, initializers=initializers, shapes=shapes, parameters=parameters,
                   per_image=per_image)  # fmt: skip
