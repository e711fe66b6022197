"""Graphs that somebody meant to be harmful are refused before ONNX Runtime sees them, in one line."""

from __future__ import annotations

import math
import zipfile

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_sel.arrays import tensor_places
from edge_sel.graphs.rules.registry import RULES, STEPWISE
from edge_sel.pack.graph_check import OPERATORS, check_graphs
from edge_sel.pack.graph_form import WireError
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.reader import open_pack
from tests.pack.hostile import (
    builtin_files,
    refused,
    sealed,
    with_file,
    with_graph,
    write_zip,
)


def test_the_pack_that_they_are_made_from_is_good(tmp_path):
    files, body = builtin_files()
    assert open_pack(write_zip(tmp_path / "good.edgepack", sealed(files, body))).weights()


# What stands outside


def point(tensor, location, offset="0", length=None, **more):
    size = math.prod(tensor.dims) * 4
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": str(size) if length is None else length, **more}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def initializer(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def weight_of(model):
    return initializer(model, "stem.conv.weight")


PLACES = {
    "a file below": lambda m: point(weight_of(m), "some/dir/file"),
    "a file beside": lambda m: point(weight_of(m), "weights.bin"),
    "a file above": lambda m: point(weight_of(m), "../secret"),
    "an absolute path": lambda m: point(weight_of(m), "/etc/hostname"),
    "the pack's by a detour": lambda m: point(weight_of(m), "./weights.safetensors"),
    "no name": lambda m: point(weight_of(m), ""),
    "the device's integers": lambda m: point(weight_of(m), "int8"),
    "another offset": lambda m: point(weight_of(m), WEIGHTS, "0"),
    "beyond the end": lambda m: point(weight_of(m), WEIGHTS, "999999999999"),
    "a negative offset": lambda m: point(weight_of(m), WEIGHTS, "-8"),
    "a checksum too": lambda m: point(weight_of(m), WEIGHTS, checksum="0"),
    "two places": lambda m: weight_of(m).external_data.add(key="location", value="/etc/hostname"),
    "another shape": lambda m: weight_of(m).dims.append(1),
    "another type": lambda m: setattr(weight_of(m), "data_type", TensorProto.INT32),
    "another name": lambda m: setattr(weight_of(m), "name", "unknown"),
    "content too": lambda m: setattr(weight_of(m), "raw_data", b"\0" * 1728),
    "a place, not said to be": lambda m: weight_of(m).ClearField("data_location"),
    "in the graph": lambda m: weight_of(m).CopyFrom(
        numpy_helper.from_array(np.zeros((16, 3, 3, 3), np.float32), "stem.conv.weight")
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_an_initializer_points_at_the_weights_or_at_nothing(case, tmp_path):
    refused(write_zip(tmp_path / "bad.edgepack", with_graph("eval.onnx", PLACES[case])), "eval.onnx")


def test_a_weight_that_the_engine_would_not_supply_to_this_graph(tmp_path):
    """ONNX Runtime would look for weights.safetensors in the working directory."""
    files, _ = builtin_files()
    place = tensor_places(files[WEIGHTS])["stem.conv.weight"]

    def change(model):
        tensor = TensorProto(name="stem.conv.weight", data_type=TensorProto.FLOAT, dims=[16, 3, 3, 3])
        point(tensor, WEIGHTS, str(place.offset))
        model.graph.initializer.append(tensor)

    for name in ("train-head.onnx", "score-head.onnx"):  # what it begins with is the backbone's
        refused(write_zip(tmp_path / "bad.edgepack", with_graph(name, change)), name, "outside")


def test_integers_that_the_engine_would_not_supply(tmp_path):
    def change(model):
        tensor = TensorProto(name="other", data_type=TensorProto.FLOAT, dims=[1])
        point(tensor, "int8")
        model.graph.initializer.append(tensor)

    refused(write_zip(tmp_path / "bad.edgepack", with_graph("backbone-head-int8.onnx", change)), "outside")


# What a graph may hold


def add(*nodes):
    return lambda model: model.graph.node.extend(nodes)


def body_graph():
    one = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    node = helper.make_node("Identity", ["c"], ["d"])
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    out = helper.make_tensor_value_info("d", TensorProto.BOOL, [])
    return helper.make_graph([node], "body", [count, one], [out])


def function_in(model):
    identity = helper.make_node("Identity", ["a"], ["b"])
    opset = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [identity], opset))


def second_graph(model):
    """Behind the first, where a parser joins the two."""
    graph = onnx.GraphProto(node=[helper.make_node("Identity", ["x"], ["y"])])
    content = graph.SerializeToString()
    return model.SerializeToString() + b"\x3a" + bytes([len(content)]) + content


def huge_tensor(model):
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20], raw_data=b"\0" * 4)
    model.graph.initializer.append(tensor)


def expanding(op, count):
    def change(model):
        model.graph.initializer.append(numpy_helper.from_array(np.array(count, np.int64), "huge"))
        model.graph.node.append(helper.make_node(op, ["x", "huge"], ["large"]))

    return change


GRAPHS = {
    "Loop": add(helper.make_node("Loop", ["m", "c"], ["o"], body=body_graph())),
    "If": add(helper.make_node("If", ["c"], ["o"], then_branch=body_graph(), else_branch=body_graph())),
    "Scan": add(helper.make_node("Scan", ["x"], ["o"], body=body_graph(), num_scan_inputs=1)),
    "a graph in a plain operator": add(helper.make_node("Relu", ["x"], ["o"], body=body_graph())),
    "ConstantOfShape": add(helper.make_node("ConstantOfShape", ["s"], ["o"])),
    "Constant": add(helper.make_node("Constant", [], ["o"], value=numpy_helper.from_array(np.zeros(3), "v"))),
    "Range": add(helper.make_node("Range", ["a", "b", "c"], ["o"])),
    "RandomNormal": add(helper.make_node("RandomNormal", [], ["o"], shape=[10])),
    "an operator that does not exist": add(helper.make_node("x" * 10_000, ["x"], ["o"])),
    "a foreign domain": add(helper.make_node("Relu", ["x"], ["o"], domain="com.microsoft")),
    "a foreign operator set": lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
    "another operator set": lambda m: setattr(m.opset_import[0], "version", 7),
    "a new format": lambda m: setattr(m, "ir_version", 99),
    "a function": function_in,
    "training": lambda m: m.training_info.add(),
    "notes": lambda m: m.metadata_props.add(key="a", value="b"),
    "a sparse tensor": lambda m: m.graph.sparse_initializer.add(),
    "a quantization table": lambda m: m.graph.quantization_annotation.add(),
    "strings": lambda m: m.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"a"])),
    "numbers as a list": lambda m: m.graph.initializer.append(helper.make_tensor("s", 1, [1], [1.0])),
    "a tensor without its bytes": huge_tensor,
    "Expand": expanding("Expand", [1 << 20, 1 << 20]),
    "Pad": expanding("Pad", [0, 0, 1 << 15, 1 << 15] * 2),
    "OneHot": expanding("OneHot", 1 << 40),
    "10^5 nodes": lambda m: m.graph.node.extend([helper.make_node("Relu", ["x"], ["o"])] * 100_000),
    "10^5 initializers": lambda m: m.graph.initializer.extend([numpy_helper.from_array(np.zeros(1), "a")] * 100_000),
    "10^5 operands": add(helper.make_node("Sum", ["x"] * 100_000, ["o"])),
    "a long attribute": add(helper.make_node("Transpose", ["x"], ["o"], perm=[0] * 100_000)),
    "one more input": lambda m: m.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])),
    "one less input": lambda m: m.graph.input.pop(),
    "an input that is twice": lambda m: m.graph.input.append(m.graph.input[0]),
    "one more output": lambda m: m.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])),
    "no output": lambda m: m.graph.output.pop(),
    "an input of another type": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7),
    "an input of another shape": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 4),
    "a sequence": lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(),
    "no graph": lambda m: m.ClearField("graph"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_holds_what_the_exporter_writes(case, tmp_path):
    files = with_graph("eval.onnx", GRAPHS[case])
    refused(write_zip(tmp_path / "bad.edgepack", files, zipfile.ZIP_STORED), "eval.onnx")


RAW = {
    "empty": b"",
    "no protobuf": b"hello world" * 10,
    "a group": b"\x0b\x0c",
    "an endless number": b"\x08" + b"\xff" * 20,
    "cut short": b"\x3a\x7f",
    "a size of 2^63": b"\x3a" + b"\xff" * 9 + b"\x01",
    "a million empty nodes": b"\x3a\x80\x89\x7a" + b"\x0a\x00" * 1_000_000,
    "a graph that is a number": b"\x38\x01",
}


@pytest.mark.parametrize("case", RAW)
def test_bytes_that_are_no_graph(case, tmp_path):
    refused(write_zip(tmp_path / "bad.edgepack", with_file("eval.onnx", RAW[case]), zipfile.ZIP_STORED), "eval.onnx")


def test_two_graphs_in_one(tmp_path):
    files, _ = builtin_files()
    twice = second_graph(onnx.load_model_from_string(files["eval.onnx"]))
    refused(write_zip(tmp_path / "bad.edgepack", with_file("eval.onnx", twice)), "field 7")


def test_every_operator_with_a_gradient_rule_may_stand_in_a_pack():
    assert set(RULES) <= OPERATORS
    assert {"ConstantOfShape", "Range"} == STEPWISE - OPERATORS, "these make large tensors of small ones"
    assert not OPERATORS & {"Loop", "If", "Scan", "SequenceMap", "Constant", "RandomNormal", "Optional"}


# Anything at all


@given(data=st.data())
@settings(max_examples=15)
def test_a_mutated_graph_is_read_or_refused(data, digits_pack):
    manifest, files = digits_pack.manifest, builtin_files()[0]
    name = data.draw(st.sampled_from(sorted(n for n in files if n.endswith(".onnx"))))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    try:
        check_graphs(manifest, {**files, name: bytes(content)}, tensor_places(files[WEIGHTS]))
    except WireError as error:
        assert name in str(error)
