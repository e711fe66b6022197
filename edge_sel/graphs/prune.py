"""Leave out what nothing asks for."""

from __future__ import annotations

from collections.abc import Collection

import onnx


def prune(graph: onnx.GraphProto, wanted: Collection[str]) -> None:
    """Keep only the nodes that some of the wanted tensors are computed by, in their order."""
    needed, kept = set(wanted), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept[::-1])
