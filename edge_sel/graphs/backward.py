"""Reverse-mode differentiation of a forward graph: the tape, the sum of gradients, the walk back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.builder import Builder
from edge_sel.graphs.ir import Forward, Shape
from edge_sel.graphs.recompute import Recompute
from edge_sel.graphs.rules import FORWARD, RULES, STEPWISE


class Differentiator:
    """Emits a forward graph and then its gradient with respect to chosen initializers.

    The walk back visits only nodes between the logits and a wanted tensor, so it stops at the earliest trainable
    layer; a frozen layer before it costs nothing but its forward.

    Args:
        forward: the graph to differentiate.
        wanted: names of initializers whose gradient is needed.
        bn_mode: ``frozen`` or ``batch``.
        channels: for limited weights, the count of guilty output channels; the run-time input is ``index::WEIGHT``.
    """

    def __init__(self, forward: Forward, wanted: Collection[str], *, bn_mode: str, channels: Mapping[str, int]) -> None:
        self.forward = forward
        self.bn_mode = bn_mode
        self.builder = Builder()
        self.op = self.builder.op
        self.ints = self.builder.ints
        self.scalar = self.builder.scalar
        self.floats = self.builder.floats
        self._limited = {name: (f"index::{name}", count) for name, count in channels.items()}
        for node in forward.nodes:  # a linear layer of several tokens multiplies with the transposed weight
            if node.op == "Transpose" and node.inputs[0] in channels:
                self._limited[node.outputs[0]] = self._limited[node.inputs[0]]
        self._wanted = set(wanted)
        self._gradients: dict[str, str] = {}
        self._shared: dict[tuple[object, ...], str] = {}
        self._saved: dict[str, dict[str, str]] = {}

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
                self.builder.copy(node)

    def emit_backward(self, dlogits: str, trainable: Collection[str]) -> dict[str, str]:
        """Append the gradient nodes; returns the gradient tensor of each trainable one.

        Raises:
            GraphError: a trainable weight does not influence the logits.
        """
        self._accumulate(self.forward.logits, dlogits)
        recompute = Recompute(self.builder, self.forward, self._keeping_norms())
        for node in reversed(self.forward.nodes):
            dy = self._gradients.get(node.outputs[0])
            if dy is None or not any(name in self._wanted for name in node.inputs):
                continue
            first = len(self.builder.nodes)
            gradients = RULES[node.op](self, node, dy)
            recompute.rewrite(first, dy)
            for name, gradient in zip(node.inputs, gradients, strict=False):
                if gradient is not None:
                    self._accumulate(name, gradient)
        unreached = sorted(set(trainable) - set(self._gradients))
        if unreached:
            raise GraphError("a trainable weight does not influence the logits", where=", ".join(unreached))
        return {name: self._gradients[name] for name in trainable}

    def _keeping_norms(self) -> set[str]:
        """Outputs of the batch normalisations whose gradient needs their input."""
        norms = [node for node in self.forward.nodes if node.op == "BatchNormalization"]
        return {
            node.outputs[0]
            for node in norms
            if self.needs(node.inputs[1]) or (self.bn_mode == "batch" and self.needs(node.inputs[0]))
        }

    def _accumulate(self, name: str, gradient: str) -> None:
        if name in self._wanted:
            earlier = self._gradients.get(name)
            self._gradients[name] = gradient if earlier is None else self.op("Add", earlier, gradient)

    # What rules ask for (the Gradients protocol).

    def needs(self, name: str) -> bool:
        """Whether the gradient with respect to this tensor is wanted."""
        return name in self._wanted

    def shape(self, name: str) -> Shape:
        """Static shape, ``None`` for run-time dimensions; GraphError when even the rank is unknown."""
        if name not in self.forward.shapes:
            raise GraphError("shape inference cannot tell the shape of a tensor that has a gradient", where=name)
        return self.forward.shape(name)

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """The initializers."""
        return self.forward.initializers

    def value(self, name: str) -> np.ndarray:
        """The value of a constant input."""
        if name not in self.forward.initializers:
            raise GraphError("an operand must be constant for the gradient rule", where=name)
        return self.forward.initializers[name]

    def channels(self, weight: str) -> tuple[str, int] | None:
        """The run-time index input of a limited weight, also when it is transposed, and its length."""
        return self._limited.get(weight)

    def cached(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """Emit once what several rules share."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def saved(self, name: str) -> dict[str, str]:
        """Tensors kept by the forward form of the node that produces ``name``."""
        return self._saved.setdefault(name, {})


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
