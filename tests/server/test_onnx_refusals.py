"""What is refused of a foreign ONNX file: in one line, with node and operator, in little memory, and nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from edge_sel.cli.export import command
from edge_sel.data.shifts import write_folder
from edge_sel.errors import BadInputError, GraphError, UsageError
from edge_sel.server.source.onnx_model import read_onnx
from edge_sel.server.source.open import Asked, open_source
from tests.server import onnx_files as files
from tests.server.conftest import CLASSES, noise_images
from tests.server.test_onnx_source import ASKED, here_alone, plain


def quantize(model):
    model.graph.node.insert(0, helper.make_node("DynamicQuantizeLinear", ["pictures"], ["q", "s", "z"]))


def half(model):
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))


def foreign_operator(model):
    model.graph.node[1].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def no_classifier(model):
    """A segmenter: a map of logits."""
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(conv.output[0], TensorProto.FLOAT, None))


def two_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 4]))


def grey(model):
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["n", 1, 16, 16]))


def any_size(model):
    for place in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"side{place}"


def sigmoid(model):
    model.graph.node.append(helper.make_node("Sigmoid", ["scores"], ["each"]))
    model.graph.output[0].name = "each"


def branches(model):
    body = helper.make_graph(
        [helper.make_node("Identity", ["scores"], ["then"])], "body", [],
        [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], then_branch=body, else_branch=body))
    model.graph.output[0].name = "chosen"


def too_old(model):
    model.opset_import[0].version = 5


def too_new(model):
    """Operator set 20 made GELU an operator."""
    model.opset_import[0].version = 20
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Gelu"


def newer_than_known(model):
    model.opset_import[0].version = 99


def not_of_this_set(model):
    """Operator set 18 made Mish an operator, and the file is of 17."""
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Mish"


def unknown_to_packs(model):
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Asinh"


def not_a_number(model):
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


BAD = {
    "quantized": (quantize, GraphError, "quantized"),
    "float16": (half, GraphError, "float16"),
    "another domain": (foreign_operator, GraphError, "not a standard ONNX operator"),
    "a segmenter": (no_classifier, GraphError, "no output is a batch of logits"),
    "two inputs": (two_inputs, GraphError, "one input, this file has 2"),
    "grey images": (grey, GraphError, "no batch of colour images"),
    "any size": (any_size, GraphError, "image size is dynamic"),
    "independent classes": (sigmoid, GraphError, "ends in a Sigmoid"),
    "a branch": (branches, GraphError, "holds a graph"),
    "too old": (too_old, GraphError, "operator set 5 is too old"),
    "newer than known": (newer_than_known, GraphError, "operator set 99 is newer than what onnx"),
    "an operator of another set": (not_of_this_set, GraphError, "operator Mish is not in operator set 17"),
    "an operator of no pack": (unknown_to_packs, GraphError, "Asinh is not one that a pack may use: .*Relu"),
    "a weight that is no number": (not_a_number, GraphError, "a weight is not a number: .*weight"),
    "too new": (too_new, GraphError, "Gelu of operator set 20 is newer than 18"),
}


@here_alone
@pytest.mark.parametrize("bad", BAD)
def test_a_file_that_cannot_be_trained_is_one_line(bad, tmp_path):
    change, kind, message = BAD[bad]
    path = files.changed(plain(tmp_path / "net.onnx"), change)
    with pytest.raises(kind, match=message) as error:
        open_source(str(path), ASKED)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_size_left_open_may_be_given(tmp_path):
    path = files.changed(plain(tmp_path / "net.onnx"), any_size)
    assert read_onnx(path, (24, 16), 3)[1] == (24, 16)
    with pytest.raises(GraphError, match="fixed at 16×16"):
        read_onnx(plain(tmp_path / "fixed.onnx"), (24, 16), 3)


def test_what_is_no_onnx_file_is_one_line(tmp_path):
    for content in (b"", b"no protobuf at all" * 50, b"\x08\x07"):
        (tmp_path / "net.onnx").write_bytes(content)
        with pytest.raises(BadInputError, match="not an ONNX file"):
            open_source(str(tmp_path / "net.onnx"), ASKED)
    with pytest.raises(BadInputError, match="no such ONNX file"):
        open_source(str(tmp_path / "other.onnx"), ASKED)


def test_external_data_are_read_and_missed(tmp_path):
    path = plain(tmp_path / "net.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert read_onnx(path, None, 3)[1] == (16, 16)
    (tmp_path / "net.data").unlink()
    with pytest.raises(BadInputError, match="external data cannot be read"):
        read_onnx(path, None, 3)


@here_alone
def test_how_images_were_normalised_must_be_told(tmp_path):
    path = plain(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="the normalisation of the images is unknown"):
        open_source(str(path), Asked(classes=CLASSES))
    assert open_source(str(path), Asked(dry=True)).info.classes == ("class 0", "class 1", "class 2")


def test_nothing_is_written_and_nothing_lost_when_a_file_is_refused(tmp_path):
    path, data, out = files.changed(plain(tmp_path / "net.onnx"), half), tmp_path / "data", tmp_path / "m.edgepack"
    write_folder(noise_images(12), data)
    out.write_bytes(b"")
    given = [str(part) for part in (path, "--data", data, "--out", out, "--mean", "0,0,0", "--std", "1,1,1")]
    with pytest.raises(UsageError, match="is not a pack"):
        CliRunner().invoke(command, given, catch_exceptions=False)
    assert out.read_bytes() == b""
    out.unlink()
    with pytest.raises(GraphError, match="float16"):
        CliRunner().invoke(command, given, catch_exceptions=False)
    assert not out.exists()


MEASURED = """
import resource, subprocess, sys
status = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
"""Of a small process: one that is forked from this one begins with the memory of this one."""


def test_a_refusal_takes_little_memory_whatever_the_file_weighs(tmp_path):
    """Of its 67 MB a process held eight copies."""
    wide = 4096
    rng = np.random.default_rng(0)
    weights = {"a.weight": (wide, 3, 1, 1), "b.weight": (wide, wide, 1, 1), "c.weight": (3, wide)}
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["a"]),
        helper.make_node("Conv", ["a", "b.weight"], ["b"]),
        helper.make_node("Asinh", ["b"], ["s"], "bend"),
        helper.make_node("ReduceMean", ["s"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["m", "c.weight"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(rng.standard_normal(shape, np.float32), name) for name, shape in weights.items()],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, "-m", "edge_sel", "export", str(path), "--dry-run"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert result.returncode == 4
    assert result.stderr.splitlines() == [
        f"edge-sel: operator Asinh is not one that a pack may use: {path}: bend (write it with other operators)"
    ]
    assert int(result.stdout) < 500 << 10, "KB"


@here_alone
def test_weights_have_no_meaning_beside_an_onnx_file(tmp_path):
    with pytest.raises(UsageError, match="--weights does not apply"):
        open_source(str(plain(tmp_path / "net.onnx")), Asked(classes=CLASSES, weights=Path("w.pth")))
