"""Compute again what is cheap, instead of keeping it from the forward pass until the backward pass needs it.

What a batch normalisation keeps for its own gradient, its input, is enough to make its output again, and what an
activation or a gate makes of that: one to three passes over a map instead of its memory (Chen et al. 2016; In-place
activated batch normalisation, Rota Bulò et al. 2018).
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import onnx

from edge_sel.graphs.annotations import read_depthwise_gradient
from edge_sel.graphs.builder import Builder
from edge_sel.graphs.ir import Forward

_CHEAP = frozenset(
    ("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Add", "Div", "Identity")
)
LARGE = 2048
"""Numbers that a tensor has for each image from which on its memory counts."""


class Recompute:
    """Puts copies of cheap forward nodes before the backward nodes that read what they make.

    Args:
        builder: holds the forward nodes, and nothing else yet.
        forward: what they were made from.
        kept: batch normalisations whose input the backward pass keeps anyway, by their output.
    """

    def __init__(self, builder: Builder, forward: Forward, kept: Collection[str]) -> None:
        self._builder, self._forward, self._kept = builder, forward, kept
        self._makers = {name: node for node in builder.nodes for name in node.output[:1]}
        self._again: dict[str, str] = {}

    def rewrite(self, first: int, dy: str) -> None:
        """Let the nodes from ``first`` on, which take the gradient ``dy``, read copies of what can be made again."""
        fresh = self._builder.nodes[first:]
        wanted = dict.fromkeys(name for node in fresh for name in node.input if self._can(name))
        if not wanted:
            return
        del self._builder.nodes[first:]
        for name in wanted:
            self._copy(name, dy)
        for node in fresh:
            for place, name in enumerate(node.input):
                node.input[place] = self._again.get(name, name)
            told = read_depthwise_gradient(node.name)
            if told is not None:
                node.name = told._replace(x=self._again.get(told.x, told.x)).name()
        self._builder.nodes.extend(fresh)

    def _large(self, name: str) -> bool:
        shape = self._forward.shapes.get(name, ())
        return len(shape) > 1 and shape[0] is None and prod(size or 0 for size in shape[1:]) >= LARGE

    def _can(self, name: str) -> bool:
        """Whether it is large, and made of what is kept anyway by cheap nodes alone."""
        node = self._makers.get(name)
        if node is None or not self._large(name):
            return False
        if node.op_type == "BatchNormalization":
            return name in self._kept
        return node.op_type in _CHEAP and all(self._can(given) for given in node.input if self._large(given))

    def _copy(self, name: str, dy: str) -> str:
        if name in self._again:
            return self._again[name]
        self._again[name] = again = f"again::{name}"
        node = self._makers[name]
        if node.op_type == "BatchNormalization":
            x, scale, bias, mean, variance = node.input
            if len(node.output) > 1:
                mean, variance = node.output[1:3]
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            inputs = [x, scale, bias, self._builder.not_before(mean, dy), variance]
            self._builder.op("BatchNormalization", *inputs, name=again, epsilon=epsilon)
            return again
        inputs = [self._copy(given, dy) if self._large(given) else given for given in node.input]
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        del copied.input[:], copied.output[:]
        copied.input.extend(inputs)
        copied.output.append(again)
        copied.name = again
        self._builder.nodes.append(copied)
        return again
