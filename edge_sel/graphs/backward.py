"""Reverse-mode differentiation of a forward graph: the tape, the sum of gradients, the walk back.

What is cheap is computed again in the backward pass, instead of being kept from the forward pass until then. What a
batch normalisation keeps for its own gradient, its input, is enough to make its output again, and what an activation or
a gate makes of that: one to three passes over a map instead of its memory (Chen et al. 2016; In-place activated batch
normalisation, Rota Bulò et al. 2018).
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import onnx

from edge_sel.errors import GraphError
from edge_sel.graphs.builder import Builder
from edge_sel.graphs.ir import read_depthwise_gradient
from edge_sel.graphs.rules.registry import FORWARD, RULES, STEPWISE, Gradients

_CHEAP = frozenset(
    ("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Add", "Div", "Identity")
)
RECOMPUTE_FROM = 2048
"""Elements per image from which on a tensor is computed again: smaller ones take too little memory to matter."""


class Differentiator(Gradients):
    """Emits a forward graph and then its gradient with respect to chosen initializers.

    The walk back visits only nodes between the logits and a wanted tensor, so it stops at the earliest trainable
    layer; a frozen layer before it costs nothing but its forward. Arguments are those of ``Gradients``.
    """

    def emit_forward(self) -> None:
        """Append the forward nodes, in their training form where an operator has one on this path."""
        for node in self.forward.nodes:
            on_path = node.op not in STEPWISE and any(name in self._wanted for name in node.inputs)
            if on_path:
                if node.op not in RULES:
                    raise GraphError(
                        f"no gradient rule for ONNX operator {node.op}",
                        where=node.name or node.outputs[0],
                        fix="choose a plan that trains only later layers, or add a rule in edge_sel/graphs/rules",
                    )
                self._wanted.add(node.outputs[0])
            form = FORWARD.get(node.op)
            statistics = node.op == "BatchNormalization"  # batch statistics do not depend on what is trained
            if not ((on_path or statistics) and form and form(self, node)):
                self.copy(node)

    def emit_backward(self, dlogits: str, trainable: Collection[str]) -> dict[str, str]:
        """Append the gradient nodes; returns the gradient tensor of each trainable one.

        Raises:
            GraphError: a trainable weight does not influence the logits.
        """
        sums: dict[str, str] = {}

        def accumulate(name: str, gradient: str) -> None:
            if self.needs(name):
                sums[name] = self.op("Add", sums[name], gradient) if name in sums else gradient

        accumulate(self.forward.logits, dlogits)
        recompute = _Recompute(self)
        for node in reversed(self.forward.nodes):
            dy = sums.get(node.outputs[0])
            if dy is None or not any(name in self._wanted for name in node.inputs):
                continue
            first = len(self.nodes)
            gradients = RULES[node.op](self, node, dy)
            recompute.rewrite(first, dy)
            for name, gradient in zip(node.inputs, gradients, strict=False):
                if gradient is not None:
                    accumulate(name, gradient)
        unreached = sorted(set(trainable) - set(sums))
        if unreached:
            raise GraphError("a trainable weight does not influence the logits", where=", ".join(unreached))
        return {name: sums[name] for name in trainable}


class _Recompute:
    """Puts copies of cheap forward nodes before the backward nodes that read what they make.

    Args:
        d: holds the forward nodes, and nothing else yet.
    """

    def __init__(self, d: Differentiator) -> None:
        self._builder, self._forward = d, d.forward
        self._makers = {name: node for node in d.nodes for name in node.output[:1]}
        self._again: dict[str, str] = {}
        self._kept = {  # outputs of the batch normalisations whose gradient needs their input
            node.outputs[0]
            for node in d.forward.nodes
            if node.op == "BatchNormalization"
            and (d.needs(node.inputs[1]) or (d.bn_mode == "batch" and d.needs(node.inputs[0])))
        }

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
            gradient = read_depthwise_gradient(node.name)
            if gradient is not None:
                node.name = gradient._replace(x=self._again.get(gradient.x, gradient.x)).name()
        self._builder.nodes.extend(fresh)

    def _large(self, name: str) -> bool:
        shape = self._forward.shapes.get(name, ())
        return len(shape) > 1 and shape[0] is None and prod(size or 0 for size in shape[1:]) >= RECOMPUTE_FROM

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


def emit_weighted_cross_entropy(b: Builder, logits: str) -> str:
    """Append the loss and its gradient; returns d(Σ wᵢ·lossᵢ / N)/d(logits), [batch, classes].

    ``loss`` [batch] is each sample's own cross-entropy, unweighted; inputs ``labels`` int64 [batch] and
    ``sample_weight`` float32 [batch]. The number of classes is read from the logits at run time.
    """
    log_p = b.op("LogSoftmax", logits, axis=-1)
    classes = b.op("Gather", b.op("Shape", logits), b.ints(1))
    onehot = b.op("OneHot", "labels", classes, b.floats([0, 1]))
    b.op("Neg", b.op("ReduceSum", b.op("Mul", log_p, onehot), b.ints(1), keepdims=0), name="loss")
    count = b.op("Cast", b.op("Size", "labels"), to=1)
    weight = b.op("Unsqueeze", b.op("Div", "sample_weight", count), b.ints(1))
    return b.op("Mul", b.op("Sub", b.op("Exp", log_p), onehot), weight)


def emit_loss(b: Builder, logits: str) -> None:
    """Append ``loss`` [batch] alone, for scoring."""
    log_p = b.op("LogSoftmax", logits, axis=-1)
    picked = b.op("GatherElements", log_p, b.op("Unsqueeze", "labels", b.ints(1)), axis=1)
    b.op("Neg", b.op("Squeeze", picked, b.ints(1)), name="loss")
