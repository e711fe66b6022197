"""What reading rewrites computes the same in onnxruntime, and only operators with a gradient rule are left."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import IR_VERSION, Forward
from edge_sel.graphs.plans import make_plan
from edge_sel.graphs.read import read_forward
from edge_sel.graphs.train import compile_eval, compile_train
from tests.tiny import FILTERS, HEIGHT, LAYERS, WIDTH, tiny_model

PADS, EMPTY = np.array([0, 0, 1, 0, 0, 0, 2, 1]), np.zeros((), np.float32)


def with_layers(*layers, extra=None) -> Forward:
    """The tiny classifier with these before its ReLU, from ``x`` to ``convolved``."""
    model = tiny_model((*layers, *LAYERS[1:]), extra=extra)
    model.ir_version = IR_VERSION
    forward = read_forward(model)
    x = np.random.default_rng(0).standard_normal((3, 3, HEIGHT, WIDTH)).astype(np.float32)
    (expected,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    feeds = {"x": x, **{name: forward.initializers[name] for name in ("head.weight", "head.bias")}}
    (found,) = ort.InferenceSession(compile_eval(forward).SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    ort.InferenceSession(compile_train(forward, make_plan(forward, "full"), "sgd").SerializeToString())
    return forward


def convolution(source: str, **attributes):
    return helper.make_node("Conv", [source, "conv.weight", "conv.bias"], ["convolved"], "convolution", **attributes)


@pytest.mark.parametrize("size", (3, 5))
def test_local_response_normalisation_becomes_a_pool_along_the_channels(size):
    forward = with_layers(
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["wide"], "wide", pads=[1, 1, 1, 1]),
        helper.make_node("LRN", ["wide"], ["convolved"], "normal", size=size, alpha=0.3, beta=0.6, bias=1.5),
    )
    assert "LRN" not in {node.op for node in forward.nodes}


@pytest.mark.parametrize("value", ((), ("empty",)))
def test_zeros_around_a_map_become_the_pads_of_its_convolution(value):
    pad = helper.make_node("Pad", ["x", "pads", *value], ["padded"], "pad")
    forward = with_layers(pad, convolution("padded", pads=[0, 1, 0, 0]), extra={"pads": PADS, "empty": EMPTY})
    assert [list(n.attributes["pads"]) for n in forward.nodes if n.op == "Conv"] == [[1, 1, 2, 1]]
    assert "Pad" not in {node.op for node in forward.nodes}


@pytest.mark.parametrize("changed", ("ones", "reflected", "read twice", "channels"))
def test_another_pad_stays(changed):
    attributes = {"mode": "reflect"} if changed == "reflected" else {}
    value = ["one"] if changed == "ones" else []
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    layers = [helper.make_node("Pad", ["x", "pads", *value], ["padded"], "pad", **attributes), convolution("padded")]
    if changed == "read twice":
        layers[1].output[0] = "once"
        layers += [
            helper.make_node("ReduceMean", ["padded", "all"], ["bright"], "bright", keepdims=1),
            helper.make_node("Add", ["once", "bright"], ["convolved"], "lit"),
        ]
    if changed == "channels":
        layers.insert(0, helper.make_node("Slice", ["x", "0", "2", "1"], ["two"], "two"))
        layers[1].input[0], pads = "two", np.array([0, 1, 1, 1, 0, 0, 1, 1])
    extra = {"pads": pads, "one": np.ones((), np.float32), "all": np.array([1, 2, 3])}
    extra |= {name: np.array([int(name)]) for name in "012"}
    assert "Pad" in {node.op for node in with_layers(*layers, extra=extra).nodes}


@pytest.mark.parametrize("automatic", ("SAME_UPPER", "SAME_LOWER", "VALID"))
@pytest.mark.parametrize("op", ("Conv", "MaxPool", "AveragePool"))
def test_automatic_pads_become_numbers(op, automatic):
    if op == "Conv":
        extra = {"wide.weight": np.random.default_rng(1).standard_normal((FILTERS, 3, 4, 2)).astype(np.float32)}
        layer = helper.make_node("Conv", ["x", "wide.weight"], ["wide"], "wide", auto_pad=automatic, strides=[2, 3])
        last = helper.make_node("Identity", ["wide"], ["convolved"], "same")
    else:
        extra = {}
        layer = helper.make_node(
            op, ["x"], ["pooled"], "window", auto_pad=automatic, kernel_shape=[3, 2], strides=[2, 3]
        )
        last = convolution("pooled", pads=[1, 1, 1, 1])
    forward = with_layers(layer, last, extra=extra)
    assert all("auto_pad" not in node.attributes for node in forward.nodes)


def test_automatic_pads_of_a_map_of_unknown_size_are_refused():
    model = tiny_model((convolution("x", auto_pad="SAME_UPPER"), *LAYERS[1:]))
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "wide"
    with pytest.raises(GraphError, match="auto_pad over a map of unknown size"):
        read_forward(model)
