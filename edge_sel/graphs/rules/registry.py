"""The table of rules and what a rule may ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.builder import Builder
from edge_sel.graphs.ir import Forward, Node, Shape

Grads = list[str | None]
"""One gradient tensor per node input, in order; ``None`` where none is needed. At the end they may be left out."""


class Gradients(Builder):
    """What a rule sees of the graph that is being differentiated; a rule emits nodes as with any builder.

    Args:
        forward: the graph to differentiate.
        wanted: names of initializers whose gradient is needed.
        bn_mode: ``frozen``: normalise with running statistics; ``batch``: with the batch's own.
        channels: for limited weights, the count of guilty output channels; the run-time input is ``index::WEIGHT``.
    """

    def __init__(self, forward: Forward, wanted: Collection[str], *, bn_mode: str, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.forward, self.bn_mode = forward, bn_mode
        self._limited = {name: (f"index::{name}", count) for name, count in channels.items()}
        for node in forward.nodes:  # a linear layer of several tokens multiplies with the transposed weight
            if node.op == "Transpose" and node.inputs[0] in channels:
                self._limited[node.outputs[0]] = self._limited[node.inputs[0]]
        self._wanted = set(wanted)
        self._cache: dict[tuple[object, ...], str] = {}
        self._saved: dict[str, dict[str, str]] = {}

    def needs(self, name: str) -> bool:
        """Whether the gradient with respect to this tensor is wanted."""
        return name in self._wanted

    def shape(self, name: str) -> Shape:
        """Static shape, ``None`` for run-time dimensions; GraphError when even the rank is unknown."""
        if name not in self.forward.shapes:
            raise GraphError("shape inference cannot tell the shape of a tensor that has a gradient", where=name)
        return self.forward.shape(name)

    def value(self, name: str) -> np.ndarray:
        """The value of a constant; GraphError when it is not one."""
        if name not in self.forward.initializers:
            raise GraphError("an operand must be constant for the gradient rule", where=name)
        return self.forward.initializers[name]

    def channels(self, weight: str) -> tuple[str, int] | None:
        """The run-time index and the count of guilty output channels (rows), when the plan limits this weight.

        The weight may be a transposed one.
        """
        return self._limited.get(weight)

    def cached(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """Emit once what several rules share, such as a map in another order of axes."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def saved(self, name: str) -> dict[str, str]:
        """Tensors that the forward form of the node producing ``name`` kept for its gradient."""
        return self._saved.setdefault(name, {})


GradientRule = Callable[[Gradients, Node, str], Grads]
ForwardForm = Callable[[Gradients, Node], bool]

RULES: dict[str, GradientRule] = {}
FORWARD: dict[str, ForwardForm] = {}
"""Operators whose forward differs in a training graph; returns False to keep the node as it is."""

_COUNTS = ("Shape", "Size", "ConstantOfShape", "Range", "OneHot", "ArgMax", "ArgMin")
_STEPS = ("Sign", "Floor", "Ceil", "Round")
_CONDITIONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or")
STEPWISE = frozenset((*_COUNTS, *_STEPS, *_CONDITIONS))
"""Operators whose output does not follow small changes of their input: no gradient goes through them."""


def known(size: int | None, problem: str, where: str) -> int:
    """The size; GraphError with the problem where the size is known only at run time."""
    if size is None:
        raise GraphError(problem, where=where)
    return size


def rule(*ops: str) -> Callable[[GradientRule], GradientRule]:
    """Register a gradient rule for one or more operators."""

    def register(function: GradientRule) -> GradientRule:
        for op in ops:
            RULES[op] = function
        return function

    return register


def forward_form(op: str) -> Callable[[ForwardForm], ForwardForm]:
    """Register the training form of an operator's forward."""

    def register(function: ForwardForm) -> ForwardForm:
        FORWARD[op] = function
        return function

    return register
