"""Which block of channels the convolutions of ONNX Runtime's own CPU library have on this machine."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper

from edge_sel.engines.blocked import rewrite
from edge_sel.graphs.annotations import DepthwiseGradient

_SAME = 1e-4


@cache
def block_size() -> int | None:
    """Channels in a block on this machine; None where these operators are missing, or do not do what is expected."""
    for block in (16, 8):
        try:
            if _agrees(block):
                return block
        except Exception:  # of onnxruntime, which has no common exception type
            continue
    return None


def _agrees(block: int) -> bool:
    """Whether a small convolution and a small depthwise gradient come out the same in either form."""
    from edge_sel.engines.native import ort
    from edge_sel.graphs.builder import Builder

    rng = np.random.default_rng(0)
    values = {"x": (2, 20, 6, 5), "w": (24, 20, 3, 3), "d": (20, 1, 3, 3), "dy": (2, 20, 3, 3)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in values.items()}
    b = Builder()
    b.op("Conv", "x", "w", name="plain", pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    b.op("Conv", "x", "d", name="deep", pads=[1, 1, 1, 1], strides=[2, 2], group=20, kernel_shape=[3, 3])
    g = DepthwiseGradient("x", "dy", (3, 3), (2, 2), (1, 1), (1, 1))
    padded = b.op("Pad", "x", b.ints(0, 0, 1, 1, 0, 0, 1, 1))
    sums = []
    for i in range(3):
        for j in range(3):
            window = b.op("Slice", padded, b.ints(i, j), b.ints(i + 5, j + 5), b.ints(2, 3), b.ints(2, 2))
            sums.append(b.op("ReduceSum", b.op("Mul", "dy", window), b.ints(0, 2, 3), keepdims=1))
    b.op("Reshape", b.op("Concat", *sums, axis=2), b.ints(20, 1, 3, 3), name="dw", node_name=g.name())
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
    names = ["plain", "deep", "dw"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    plain = b.model(inputs, outputs, {}, "probe").SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    found = []
    for graph in (plain, rewrite(plain, 2, block)):
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found.append(session.run(names, feeds))
    return all(np.abs(p - q).max() <= _SAME * np.abs(p).max() for p, q in zip(*found, strict=True))
