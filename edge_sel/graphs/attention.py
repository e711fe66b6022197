"""Attention heads, read off the forward graph: they are to a transformer what output channels are to a convolution."""

from __future__ import annotations

from edge_sel.graphs.ir import Forward, Node

QUERY_KEY_VALUE = 3
"""One linear layer makes all three; its rows are [3, heads, rows of a head]."""


def attention_heads(forward: Forward) -> dict[str, int]:
    """How many heads each linear layer serves that makes query, key and value together; by the name of its weight.

    Such a weight [3·H·D, I] is transposed, multiplied with the tokens, and what comes out is cut into [3, H, D] on its
    way to a softmax. Attention of another form is not found.
    """
    readers: dict[str, list[Node]] = {}
    for node in forward.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in forward.nodes:
        if node.op == "Transpose" and node.inputs[0] in forward.parameters:
            heads = _heads(forward, readers, node)
            if heads and _reaches_softmax(readers, node.outputs[0], forward):
                found[node.inputs[0]] = heads
    return found


def _heads(forward: Forward, readers: dict[str, list[Node]], transpose: Node) -> int:
    """Of the layer that multiplies with this; 0 if what it makes is not cut into queries, keys and values of heads."""
    rows, name = forward.shape(transpose.inputs[0])[0], transpose.outputs[0]
    for ops in (("MatMul",), ("Add",), ("Reshape",)):
        after = readers.get(name, [])
        if len(after) != 1 or after[0].op not in ops:
            if ops == ("Add",):
                continue  # a layer without bias
            return 0
        name = after[0].outputs[0]
    *_, parts, heads, size = (0, 0, 0, *forward.shape(name))
    fits = heads and size and parts == QUERY_KEY_VALUE and rows == QUERY_KEY_VALUE * heads * size
    return int(heads or 0) if fits else 0


def _reaches_softmax(readers: dict[str, list[Node]], name: str, forward: Forward) -> bool:
    """Before the next layer that has weights of its own, but for the bias of this one."""
    waiting, seen = [name], {name}
    while waiting:
        for node in readers.get(waiting.pop(), []):
            if node.op == "Softmax":
                return True
            weights = [given for given in node.inputs if given in forward.parameters]
            if node.op in ("Conv", "Gemm", "LayerNormalization") or (weights and node.op != "Add"):
                continue
            fresh = [out for out in node.outputs if out not in seen]
            seen.update(fresh)
            waiting += fresh
    return False
