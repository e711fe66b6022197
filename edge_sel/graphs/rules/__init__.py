"""Gradient rules, one small function per ONNX operator.

To support another operator, write one function in the module of its family::

    @rule("Relu")
    def relu(g: Gradients, node: Node, dy: str) -> Grads:
        return [g.op("Mul", dy, g.op("Sign", node.outputs[0]))]

and add one line to ``tests/graphs/cases.py``: the rule is then checked against a numerical gradient in float64
and against torch autograd.
"""

from edge_sel.graphs.rules import activation, conv, elementwise, linear, norm, pool, shape
from edge_sel.graphs.rules.registry import FORWARD, RULES, Gradients, Grads, rule

__all__ = [
    "FORWARD",
    "RULES",
    "Gradients",
    "Grads",
    "activation",
    "conv",
    "elementwise",
    "linear",
    "norm",
    "pool",
    "rule",
    "shape",
]
