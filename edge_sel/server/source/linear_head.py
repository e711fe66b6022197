"""Give a foreign graph a linear head in the one form that plans look for: a Gemm with weight [C, F] and bias [C]."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_sel.graphs.ir import Forward, Node


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
        if last.op == "Identity" or (last.op == "Dropout" and len(last.outputs) == 1):
            before = self._producer(last.inputs[0])
            if before is None or len(before.outputs) > 1 or not self._only_read_by(last.inputs[0], last):
                return False
            return self._replace((before, last), [replace(before, outputs=last.outputs)])
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
        turned = before
        if before.op == "Transpose":  # of one pixel: Keras turns the channels last
            made = self._producer(before.inputs[0])
            before = made if made is not None and self._only_read_by(turned.inputs[0], turned) else before
        if before.op == "Conv" and self.forward.shape(before.inputs[0])[2:] == (1, 1):
            kernel, *bias = (self._constant(name) for name in before.inputs[1:])
            if kernel.shape[2:] != (1, 1) or before.attribute("group", 1) != 1:
                return False
            flat = f"{before.outputs[0]}::features"
            width = kernel.shape[1]
            flatten = Node("Flatten", before.inputs[:1], (flat,), {"axis": 1}, flat)
            self.forward = replace(self.forward, shapes={**self.forward.shapes, flat: (None, width)},
                                   per_image=self.forward.per_image | {flat})  # fmt: skip
            gemm = self._gemm(last.outputs[0], flat, before.inputs[1], kernel[:, :, 0, 0], bias)
            return self._replace((before, turned, last), [flatten, gemm])
        if (
            before is turned
            and before.op in ("Add", "Gemm", "MatMul")
            and len(self.forward.shape(before.outputs[0])) == 2
        ):
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
