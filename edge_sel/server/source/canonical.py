"""Give a foreign graph what plans look for: weights with the names of layers, and a linear head as one Gemm."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

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
_A_PATH = re.compile(r"[A-Za-z_][\w]*(\.\w+)+")
"""Names as torch gives them, such as ``layer1.0.conv1.weight``."""


def name_weights(forward: Forward) -> tuple[Forward, tuple[str, ...]]:
    """Weights and running statistics under the names of layers, and all of them in forward order.

    A weight is a float operand of a convolution, a product or a normalisation; behind the first of these also one of
    more than one element of an addition or a multiplication. Names that are paths stay as they are; another becomes
    ``layerN.weight``, N counting the layers.
    """
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
    kept = tuple(new[name] for name in roles)
    parameters = {new[n] for n, (_, role) in roles.items() if role not in ("mean", "variance")}
    return _renamed(forward, new, frozenset(parameters)), kept


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
    nodes = tuple(replace(node, inputs=tuple(new.get(name, name) for name in node.inputs)) for node in forward.nodes)
    initializers = {new.get(name, name): value for name, value in forward.initializers.items()}
    shapes = {new.get(name, name): shape for name, shape in forward.shapes.items()}
    return replace(forward, nodes=nodes, initializers=initializers, shapes=shapes, parameters=parameters)


def with_linear_head(forward: Forward) -> Forward:
    """A head that is MatMul and Add, a Gemm without bias, or a 1×1 convolution of one pixel, as ``x·Wᵀ + b``."""
    head = _Head(forward)
    while head.step():
        pass
    return head.forward


class _Head:
    """Walks back from the logits as far as it knows the way."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward

    def step(self) -> bool:
        """One rewriting; whether there was anything to do."""
        last = self._producer(self.forward.logits)
        if last is None:
            return False
        if last.op in ("Flatten", "Reshape", "Squeeze"):
            before = self._producer(last.inputs[0])
            return before is not None and self._flat(last, before)
        if last.op == "Add":
            return self._join(last)
        if last.op == "MatMul" and last.inputs[1] in self.forward.initializers:
            return self._put(last, last.inputs[0], self._constant(last.inputs[1]).T, None)
        if (
            last.op == "Gemm"
            and last.inputs[1] in self.forward.initializers
            and last.inputs[0] not in self.forward.initializers
        ):
            return self._plain(last)
        return False

    def _producer(self, name: str) -> Node | None:
        return next((node for node in self.forward.nodes if name in node.outputs), None)

    def _constant(self, name: str) -> np.ndarray:
        return self.forward.initializers[name]

    def _only_read_by(self, name: str, reader: Node) -> bool:
        return all(node is reader for node in self.forward.nodes if name in node.inputs)

    def _flat(self, last: Node, before: Node) -> bool:
        """One pixel per channel that is flattened: the layer before it makes the logits."""
        if not self._only_read_by(last.inputs[0], last):
            return False
        if before.op == "Conv" and self.forward.shape(before.inputs[0])[2:] == (1, 1):
            kernel, *bias = (self._constant(name) for name in before.inputs[1:])
            if kernel.shape[2:] != (1, 1) or before.attribute("group", 1) != 1:
                return False
            flat = f"{before.outputs[0]}::features"
            width = kernel.shape[1]
            flatten = Node("Flatten", before.inputs[:1], (flat,), {"axis": 1}, flat)
            self.forward = replace(self.forward, shapes={**self.forward.shapes, flat: (None, width)},
                                   per_image=self.forward.per_image | {flat})  # fmt: skip
            return self._replace(
                (before, last), [flatten, self._gemm(last.outputs[0], flat, before.inputs[1], kernel[:, :, 0, 0], bias)]
            )
        if before.op in ("Add", "Gemm", "MatMul") and len(self.forward.shape(before.outputs[0])) == 2:
            return self._replace((before, last), [replace(before, outputs=last.outputs)])
        return False

    def _join(self, last: Node) -> bool:
        """MatMul and its bias."""
        for product, bias in (last.inputs, last.inputs[::-1]):
            made = self._producer(product)
            if bias in self.forward.initializers and made is not None and self._only_read_by(product, last):
                values = self._constant(bias)
                plain = made.op == "MatMul" and made.inputs[1] in self.forward.initializers
                if plain and self._constant(made.inputs[1]).ndim == 2 and values.size == values.shape[-1]:
                    gemm = self._gemm(last.outputs[0], made.inputs[0], made.inputs[1],
                                      self._constant(made.inputs[1]).T, [values.reshape(-1)], bias)  # fmt: skip
                    return self._replace((made, last), [gemm])
        return False

    def _plain(self, last: Node) -> bool:
        """A Gemm with weight [C, F] and a bias [C]."""
        weight = self._constant(last.inputs[1])
        scaled = last.attribute("alpha", 1.0) != 1 or last.attribute("beta", 1.0) != 1 or last.attribute("transA", 0)
        biased = len(last.inputs) > 2 and last.inputs[2]
        if (
            scaled
            or weight.ndim != 2
            or (last.attribute("transB", 0) and biased and self._constant(last.inputs[2]).ndim == 1)
        ):
            return False
        rows = weight if last.attribute("transB", 0) else weight.T
        return self._put(last, last.inputs[0], rows, last.inputs[2] if biased else None)

    def _put(self, last: Node, features: str, weight: np.ndarray, bias: str | None) -> bool:
        values = [] if bias is None else [self._constant(bias).reshape(-1)]
        gemm = self._gemm(last.outputs[0], features, last.inputs[1], weight, values, bias or "")
        return self._replace((last,), [gemm])

    def _gemm(
        self, output: str, features: str, name: str, weight: np.ndarray, bias: list[np.ndarray], bias_name: str = ""
    ) -> Node:
        """``features·Wᵀ + b`` with the given values, zero where there is no bias."""
        values = bias[0] if bias else np.zeros(len(weight), np.float32)
        if weight.shape != self._constant(name).shape:  # another layer may read the old one
            name = f"{name}::head"
        names = (name, bias_name or f"{name.removesuffix('weight').rstrip('.')}.bias")
        given = dict(zip(names, (np.ascontiguousarray(weight), np.ascontiguousarray(values)), strict=True))
        self.forward = replace(
            self.forward,
            initializers={**self.forward.initializers, **given},
            shapes={**self.forward.shapes, **{key: value.shape for key, value in given.items()}},
        )
        return Node("Gemm", (features, *names), (output,), {"transB": 1}, output)

    def _replace(self, old: tuple[Node, ...], new: list[Node]) -> bool:
        """New nodes in the place of the last of the old ones."""
        nodes: list[Node] = []
        for node in self.forward.nodes:
            if node is old[-1]:
                nodes += new
            elif not any(node is gone for gone in old):
                nodes.append(node)
        used = {name for node in nodes for name in node.inputs}
        initializers = {name: value for name, value in self.forward.initializers.items() if name in used}
        self.forward = replace(self.forward, nodes=tuple(nodes), initializers=initializers)
        return True
