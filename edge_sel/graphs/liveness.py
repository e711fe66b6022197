"""How much memory a compiled step needs for what it computes on the way."""

from __future__ import annotations

from math import prod

import onnx

from edge_sel.graphs.shapes import static_shapes

_BYTES = 4


def step_bytes(model: onnx.ModelProto, classes: int) -> int:
    """What one more image adds to ``peak_activation_bytes``."""
    peaks = [peak_activation_bytes(model, classes, batch) for batch in (8, 16)]
    return (peaks[1] - peaks[0]) // 8


def peak_activation_bytes(model: onnx.ModelProto, classes: int, batch: int) -> int:
    """Largest sum of computed tensors that are alive at once: activations and gradients, not weights.

    A tensor is alive from the node that makes it to the last node that reads it, in the graph's order; an engine may
    choose another. Every element counts 4 bytes.
    """
    shapes = static_shapes(model, classes, batch)
    last = {name: number for number, node in enumerate(model.graph.node) for name in node.input}
    alive = peak = 0
    ends: dict[int, int] = {}
    for number, node in enumerate(model.graph.node):
        for name in node.output:
            size = _BYTES * prod(shapes.get(name, (0,)))
            alive += size
            end = last.get(name, len(model.graph.node))
            ends[end] = ends.get(end, 0) + size
        peak = max(peak, alive)
        alive -= ends.pop(number, 0)
    return peak
