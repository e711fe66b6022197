"""The table of rules and what a rule may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from edge_sel.graphs.builder import Builder
from edge_sel.graphs.ir import Node, Shape

Grads = list[str | None]
"""One gradient tensor per node input, in order; ``None`` where none is needed."""


class Gradients(Protocol):
    """What a rule sees of the graph that is being differentiated."""

    builder: Builder
    bn_mode: str
    """``frozen``: normalise with running statistics; ``batch``: with the batch's own."""

    def op(self, op: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        """Emit an operator."""

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant."""

    def scalar(self, value: float) -> str:
        """A float32 scalar constant."""

    def floats(self, value: object) -> str:
        """A float32 constant of any shape."""

    def needs(self, name: str) -> bool:
        """Whether the gradient with respect to this tensor is wanted."""

    def shape(self, name: str) -> Shape:
        """Static shape, ``None`` for run-time dimensions."""

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """The values that are known when the graph is compiled."""

    def value(self, name: str) -> np.ndarray:
        """The value of a constant; GraphError when it is not one."""

    def channels(self, weight: str) -> tuple[str, int] | None:
        """The run-time index and the count of guilty output channels (rows), when the plan limits this weight."""

    def cached(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """Emit once what several rules can share, such as an im2col matrix."""

    def saved(self, name: str) -> dict[str, str]:
        """Tensors that the forward form of the node producing ``name`` kept for its gradient."""


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
