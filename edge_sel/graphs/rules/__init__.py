"""Gradient rules, one small function per ONNX operator.

To support another operator, write one function in the module of its family::

    @rule("Tanh")
    def tanh(g: Gradients, node: Node, dy: str) -> Grads:
        y = node.outputs[0]
        return [g.op("Mul", dy, g.op("Sub", g.scalar(1.0), g.op("Mul", y, y)))]

and add one line to ``tests/graphs/cases.py``: the rule is then checked against a numerical gradient in float64
and against torch autograd.
"""

from edge_sel.graphs.rules import conv, elementwise, linear, reductions, shape

__all__ = ["conv", "elementwise", "linear", "reductions", "shape"]
