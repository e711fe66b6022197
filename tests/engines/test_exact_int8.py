"""Products of int8 add up exactly on a processor without VNNI too: the integers are as large as they can be."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edge_sel.engines.ort import OrtEngine

CHANNELS, SIZE = 32, 6


def two_convolutions(weight: np.ndarray) -> bytes:
    """They share their zero points, as convolutions of a pack do."""
    steps = {
        "fine": np.float32(1 / 127), "coarse": np.float32(CHANNELS), "low": np.array(0, np.uint8),
        "zero": np.array(0, np.int8), "per_channel": np.full(CHANNELS, 1 / 127, np.float32),
    }  # fmt: skip
    nodes = []
    for source, out, on in (("x", "middle", "fine"), ("middle", "y", "coarse")):
        operands = [source, on, "low", f"{out}.weight", "per_channel", "zero", "coarse", "low"]
        nodes.append(helper.make_node("QLinearConv", operands, [out]))
    shape = ["batch", CHANNELS, SIZE, SIZE]
    graph = helper.make_graph(
        nodes, "int8",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in steps.items()],
    )  # fmt: skip
    for name in ("middle.weight", "y.weight"):
        tensor = numpy_helper.from_array(weight, name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "int8"), ("offset", "0"), ("length", str(weight.nbytes))):
            tensor.external_data.add(key=key, value=value)
        graph.initializer.append(tensor)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def test_the_largest_products_add_up_exactly():
    weight = np.full((CHANNELS, CHANNELS, 1, 1), 127, np.int8)
    given = {"middle.weight": weight, "y.weight": weight}
    session = OrtEngine(1).session(two_convolutions(weight), given, int8=True)
    (found,) = session.run(["y"], {"x": np.full((2, CHANNELS, SIZE, SIZE), 255, np.uint8)})
    middle = round(CHANNELS * 255 / 127 / CHANNELS)  # sums of products, in coarse steps
    assert (found == round(CHANNELS * middle * CHANNELS / CHANNELS)).all(), found.ravel()[:4]
