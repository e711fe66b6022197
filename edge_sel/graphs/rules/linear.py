"""Matrix products."""

from __future__ import annotations

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Node
from edge_sel.graphs.rules.registry import Gradients, Grads, known, rule


@rule("Gemm")
def gemm(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = x·W + b`` (W transposed or not): ``dx = dy·Wᵀ``, ``dW = xᵀ·dy``, ``db = Σ dy``."""
    if node.attribute("transA", 0) or node.attribute("alpha", 1.0) != 1 or node.attribute("beta", 1.0) != 1:
        raise GraphError("Gemm with transA, alpha or beta", where=node.name, fix="export as a plain linear layer")
    x, w, *bias = node.inputs
    transposed = node.attribute("transB", 0)
    dx = g.op("Gemm", dy, w, transB=0 if transposed else 1) if g.needs(x) else None
    dw = None
    if g.needs(w):
        dw = g.op("Gemm", *((dy, x) if transposed else (x, dy)), transA=1)
    wanted = [b for b in bias if g.needs(b)]
    if wanted and len(g.shape(wanted[0])) != 1:
        raise GraphError("Gemm with a bias that is not a vector", where=wanted[0])
    return [dx, dw, *(g.op("ReduceSum", dy, g.ints(0), keepdims=0) for b in wanted)]


@rule("MatMul")
def matmul(g: Gradients, node: Node, dy: str) -> Grads:
    """``y = a·b`` over the last two axes: ``da = dy·bᵀ``, ``db = aᵀ·dy``, summed over broadcast axes."""
    a, b = node.inputs
    rank_a, rank_b = len(g.shape(a)), len(g.shape(b))
    if rank_a < 2 or rank_b < 2:
        raise GraphError("MatMul with a vector", where=node.name, fix="use a matrix with one row or column")
    da = db = None
    if g.needs(a):
        da = _sum_leading(g, g.op("MatMul", dy, _swap(g, b, rank_b)), max(rank_a, rank_b), a)
    if g.needs(b):
        if rank_b == 2:  # one large product instead of a batched one and a sum
            rows, columns = (known(size, "MatMul with a weight of unknown size", b) for size in g.shape(b))
            flat_a = g.op("Reshape", a, g.ints(-1, rows))
            flat_dy = g.op("Reshape", dy, g.ints(-1, columns))
            if guilty := g.channels(b):  # of a transposed weight, whose rows are the columns here
                flat_dy = g.op("Gather", flat_dy, guilty[0], axis=1)
            db = g.op("Gemm", flat_a, flat_dy, transA=1)
        else:
            db = _sum_leading(g, g.op("MatMul", _swap(g, a, rank_a), dy), max(rank_a, rank_b), b)
    return [da, db]


def _swap(g: Gradients, tensor: str, rank: int) -> str:
    return g.op("Transpose", tensor, perm=[*range(rank - 2), rank - 1, rank - 2])


def _sum_leading(g: Gradients, gradient: str, rank: int, operand: str) -> str:
    shape = g.shape(operand)
    lead = rank - len(shape)
    axes = [*range(lead), *(lead + i for i, size in enumerate(shape[:-2]) if size == 1)]
    if not axes:
        return gradient
    total = g.op("ReduceSum", gradient, g.ints(*axes), keepdims=1)
    return g.op("Reshape", total, g.op("Shape", operand))
