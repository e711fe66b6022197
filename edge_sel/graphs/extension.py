"""Collect the nodes that a rewriting puts into a forward graph, with the shapes and constants that go with them."""

from __future__ import annotations

import numpy as np

from edge_sel.graphs.ir import Forward, Node, Shape


class Extension:
    """New nodes, and shapes, initializers and per-image tensors of the graph with them.

    Args:
        forward: the graph as it was.
        prefix: of all new names, which are then ``PREFIX::WHAT``.
    """

    def __init__(self, forward: Forward, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[Node] = []
        self.shapes, self.initializers = dict(forward.shapes), dict(forward.initializers)
        self.per_image = set(forward.per_image)

    def add(self, op: str, inputs: tuple[str, ...], shape: Shape, what: str, **attributes: int) -> str:
        """Append an operator; the name of what it makes."""
        name = f"{self.prefix}::{what}"
        while name in self.shapes:
            name += "_"
        self.nodes.append(Node(op, inputs, (name,), dict(attributes), name))
        self.shapes[name] = shape
        self.per_image.add(name)
        return name

    def part(self, name: str, start: int, end: int) -> str:
        """Of a vector [N, F]: features ``start`` to ``end``."""
        bounds = [self.ints(value) for value in (start, end, 1)]
        return self.add("Slice", (name, *bounds), (None, end - start), f"part{start}")

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(",".join(map(str, values)), np.array(values, np.int64))

    def constant(self, what: str, value: np.ndarray) -> str:
        """The name of an initializer with this value."""
        name = f"{self.prefix}::{what}"
        self.initializers[name], self.shapes[name] = value, value.shape
        return name
