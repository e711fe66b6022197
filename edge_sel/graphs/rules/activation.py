"""Activation functions. Slopes are computed from the output where that saves keeping the input alive."""

from __future__ import annotations

import math

from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules.registry import Gradients, Grads, rule


def _inside(g: Gradients, y: str, low: float, high: float) -> str:
    """1 where low < y < high, else 0, from products and signs: comparisons would need a Cast each."""
    above = g.op("Sub", y, g.scalar(low)) if low else y
    return g.op("Relu", g.op("Sign", g.op("Mul", above, g.op("Sub", g.scalar(high), y))))


@rule("Relu")
def relu(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = max(x, 0)``; ``dx = dy·sign(y)``."""
    return [g.op("Mul", dy, g.op("Sign", node.outputs[0]))]


@rule("LeakyRelu")
def leaky_relu(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = x`` for x > 0, else ``αx``; the slope follows the sign of y."""
    alpha = float(node.attribute("alpha", 0.01))
    positive = g.op("Relu", g.op("Sign", node.outputs[0]))
    slope = g.op("Add", g.op("Mul", positive, g.scalar(1 - alpha)), g.scalar(alpha))
    return [g.op("Mul", dy, slope)]


@rule("Clip")
def clip(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = min(max(x, low), high)`` with constant bounds (ReLU6)."""
    low = float(g.value(node.inputs[1])) if len(node.inputs) > 1 and node.inputs[1] else -3.0e38
    high = float(g.value(node.inputs[2])) if len(node.inputs) > 2 and node.inputs[2] else 3.0e38
    y = node.outputs[0]
    above = g.op("Sign", g.op("Sub", y, g.scalar(low)))
    below = g.op("Sign", g.op("Sub", g.scalar(high), y))
    return [g.op("Mul", dy, g.op("Mul", above, below)), *[None] * (len(node.inputs) - 1)]


@rule("Sigmoid")
def sigmoid(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = 1/(1+e⁻ˣ)``; ``dx = dy·y·(1−y)``."""
    y = node.outputs[0]
    return [g.op("Mul", dy, g.op("Mul", y, g.op("Sub", g.scalar(1.0), y)))]


@rule("Tanh")
def tanh(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx = dy·(1−y²)``."""
    y = node.outputs[0]
    return [g.op("Mul", dy, g.op("Sub", g.scalar(1.0), g.op("Mul", y, y)))]


@rule("HardSigmoid")
def hard_sigmoid(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = min(max(αx + β, 0), 1)``."""
    alpha = float(node.attribute("alpha", 0.2))
    slope = g.op("Mul", _inside(g, node.outputs[0], 0.0, 1.0), g.scalar(alpha))
    return [g.op("Mul", dy, slope)]


@rule("HardSwish")
def hard_swish(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = x·h(x)``, h = HardSigmoid(1/6, 1/2); ``dx = dy·(h + x·h′)``."""
    x = node.inputs[0]
    h = g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    slope = g.op("Mul", _inside(g, h, 0.0, 1.0), g.scalar(1 / 6))
    return [g.op("Mul", dy, g.op("Add", h, g.op("Mul", x, slope)))]


@rule("Erf")
def erf(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx = dy·2/√π·exp(−x²)`` (exact GELU is built from Erf)."""
    x = node.inputs[0]
    bell = g.op("Exp", g.op("Neg", g.op("Mul", x, x)))
    return [g.op("Mul", dy, g.op("Mul", bell, g.scalar(2 / math.sqrt(math.pi))))]


@rule("Softmax")
def softmax(g: Gradients, node: Node, dy: str) -> Grads:
    """``dx = y·(dy − Σ dy·y)`` over the softmax axis."""
    y = node.outputs[0]
    axis = int(node.attribute("axis", -1))
    total = g.op("ReduceSum", g.op("Mul", dy, y), g.ints(axis), keepdims=1)
    return [g.op("Mul", y, g.op("Sub", dy, total))]
