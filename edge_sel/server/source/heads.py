"""The head of a classifier: in the one form that plans look for, of another number of classes, reading earlier layers.

The form is a Gemm with weight [C, F] and bias [C].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper

from edge_sel.arrays import Arrays
from edge_sel.graphs.deep_head import find_taps, with_deep_head
from edge_sel.graphs.ir import Forward, Node
from edge_sel.graphs.plans import head_names
from edge_sel.graphs.train import compile_eval
from edge_sel.pack.manifest import DEEP_HEAD
from edge_sel.server.source.base import Source, replace_all
from edge_sel.server.source.onnx_weights import session_of, with_references


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
        if last.op == "Add":
            return self._join(last)
        if last.op in ("MatMul", "Gemm") and last.inputs[1] in self.forward.initializers:
            return self._product(last)
        before = self._producer(last.inputs[0])
        if before is None or not self._only_read_by(last.inputs[0], last):
            return False
        if last.op in ("Flatten", "Reshape", "Squeeze"):
            return self._flat(last, before)
        if last.op != "Identity" or len(before.outputs) > 1:
            return False
        return self._replace((before, last), [replace(before, outputs=last.outputs)])

    def _producer(self, name: str) -> Node | None:
        return next((node for node in self.forward.nodes if name in node.outputs), None)

    def _constant(self, name: str) -> np.ndarray:
        return self.forward.initializers[name]

    def _only_read_by(self, name: str, reader: Node) -> bool:
        return all(node is reader for node in self.forward.nodes if name in node.inputs)

    def _flat(self, last: Node, before: Node) -> bool:
        """One pixel per channel that is flattened: the layer before it makes the logits."""
        turned = before
        if before.op == "Transpose":  # of one pixel: Keras turns the channels last
            made = self._producer(before.inputs[0])
            before = made if made is not None and self._only_read_by(turned.inputs[0], turned) else before
        if before.op == "Conv" and self.forward.shape(before.inputs[0])[2:] == (1, 1):
            kernel = self._constant(before.inputs[1])
            if kernel.shape[2:] != (1, 1) or before.attribute("group", 1) != 1:
                return False
            flat = f"{before.outputs[0]}::features"
            self.forward = replace(self.forward, shapes={**self.forward.shapes, flat: (None, kernel.shape[1])},
                                   per_image=self.forward.per_image | {flat})  # fmt: skip
            flatten = Node("Flatten", before.inputs[:1], (flat,), {"axis": 1}, flat)
            bias = self._constant(before.inputs[2]) if len(before.inputs) > 2 else None
            gemm = self._gemm(last, flat, before.inputs[1], kernel[:, :, 0, 0], bias)
            return self._replace((before, turned, last), [flatten, gemm])
        linear = before is turned and before.op in ("Add", "Gemm", "MatMul")
        if not linear or len(self.forward.shape(before.outputs[0])) != 2:
            return False
        return self._replace((before, last), [replace(before, outputs=last.outputs)])

    def _join(self, last: Node) -> bool:
        """MatMul and its bias."""
        for product, bias in (last.inputs, last.inputs[::-1]):
            made = self._producer(product)
            if bias not in self.forward.initializers or made is None or not self._only_read_by(product, last):
                continue
            values = self._constant(bias)
            if made.op == "MatMul" and made.inputs[1] in self.forward.initializers:
                weight = self._constant(made.inputs[1])
                if weight.ndim == 2 and values.size == values.shape[-1]:
                    gemm = self._gemm(last, made.inputs[0], made.inputs[1], weight.T, values.reshape(-1), bias)
                    return self._replace((made, last), [gemm])
        return False

    def _product(self, last: Node) -> bool:
        """A MatMul, or a Gemm that has not weight [C, F] and bias [C]."""
        (features, name, *rest), weight, bias = last.inputs, self._constant(last.inputs[1]), None
        turned = last.attribute("transB", 0)
        if last.op == "Gemm":
            scaled = any(last.attribute(key, 1.0) != 1 for key in ("alpha", "beta")) or last.attribute("transA", 0)
            bias = self._constant(rest[0]) if rest and rest[0] else None
            done = turned and bias is not None and bias.ndim == 1
            if features in self.forward.initializers or scaled or weight.ndim != 2 or done:
                return False
        values = None if bias is None else bias.reshape(-1)
        gemm = self._gemm(last, features, name, weight if turned else weight.T, values, rest[0] if rest else "")
        return self._replace((last,), [gemm])

    def _gemm(
        self, last: Node, features: str, name: str, weight: np.ndarray, bias: np.ndarray | None, bias_name: str = ""
    ) -> Node:
        """``features·Wᵀ + b`` with the output of ``last``; of zeros where there is no bias."""
        values = np.zeros(len(weight), np.float32) if bias is None else bias
        if weight.shape != self._constant(name).shape:  # another layer may read the old one
            name = f"{name}::head"
        names = (name, bias_name or f"{name.removesuffix('weight').rstrip('.')}.bias")
        given = dict(zip(names, (np.ascontiguousarray(weight), np.ascontiguousarray(values)), strict=True))
        self.forward = replace(
            self.forward,
            initializers={**self.forward.initializers, **given},
            shapes={**self.forward.shapes, **{key: value.shape for key, value in given.items()}},
        )
        return Node("Gemm", (features, *names), last.outputs[:1], {"transB": 1}, last.outputs[0])

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


def resize_head(forward: Forward, classes: int) -> Forward:
    """The graph with zeros, still to be fitted, for a head of ``classes`` logits; itself where it has so many."""
    head = head_names(forward)
    if all(len(forward.initializers[name]) == classes for name in head):
        return forward
    fresh = {name: np.zeros((classes, *forward.initializers[name].shape[1:]), np.float32) for name in head}
    shapes = {**forward.shapes, **{name: value.shape for name, value in fresh.items()}, forward.logits: (None, classes)}
    return replace(forward, initializers={**forward.initializers, **fresh}, shapes=shapes)


def deepened(source: Source) -> Source:
    """With a head that reads the last blocks too, where there are such and the head is linear in a vector.

    Of a network of torch only of blocks that are outputs of its modules, by the names of these: a device that asks
    torch for the model must find them too.
    """
    forward = source.forward
    names = forward.modules
    taps = [tap for tap in find_taps(forward) if names is None or tap.name in names]
    deep = with_deep_head(forward, taps)
    if deep is forward:
        return source
    weights = {name: deep.initializers[name] for name in (f"{DEEP_HEAD}.weight", f"{DEEP_HEAD}.bias")}
    named = tuple(tap if names is None else replace(tap, name=names[tap.name]) for tap in taps)
    return replace(source, forward=deep, weights={**source.weights, **weights}, taps=named)


def outputs_of(forward: Forward, names: Sequence[str], image: np.ndarray) -> Arrays:
    """These tensors of the graph, for some images [N, 3, H, W]."""
    slim, large = with_references(forward)
    model = compile_eval(slim)
    replace_all(model.graph.output, [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names])
    session = session_of(model, large)
    asked = {given.name for given in session.get_inputs()}
    head = {name: forward.initializers[name] for name in head_names(forward) if name in asked}
    return dict(zip(names, session.run(list(names), {forward.input: image, **head}), strict=True))
