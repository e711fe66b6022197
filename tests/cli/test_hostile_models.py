"""ONNX files of anybody, to classify with or to export: one line each, in little time and memory."""

import functools
import json
import time

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_sel.pack.foreign_model import survey_model
from edge_sel.pack.graph_form import WireError

F = TensorProto.FLOAT


def value(name, dims):
    return helper.make_tensor_value_info(name, F, dims)


def model(nodes, *, image=("n", 3, 8, 8), weights=(), opset=18, functions=(), domain="", outputs=None, **facts):
    graph = helper.make_graph(nodes, "g", [value("x", image)], outputs or [value("logits", ["n", 2])], list(weights))
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(domain, opset)], functions=list(functions), ir_version=9
    )
    facts_given = {"classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.5] * 3, **facts}
    helper.set_model_props(made, {key: v if isinstance(v, str) else json.dumps(v) for key, v in facts_given.items()})
    return made


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def classifier(*, more=(), pixels="x", scale=1.0, classes=2, **how):
    """Mean over the image, then a head; ``more`` nodes make ``pixels`` of ``x``."""
    weights = [tensor("w", (scale * np.ones((3, classes))).astype(np.float32)), *how.pop("weights", ())]
    nodes = [
        *more, helper.make_node("GlobalAveragePool", [pixels], ["p"]), helper.make_node("Flatten", ["p"], ["f"], axis=1),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]  # fmt: skip
    return model(nodes, weights=weights, **how)


def repeated(made, count):
    """The file with so many of its first node."""
    first = onnx.ModelProto(graph=onnx.GraphProto(node=made.graph.node[:1])).SerializeToString()
    return made.SerializeToString() + count * first  # parts of a message that come again are added to it


def hollow(dims):
    """A tensor without its numbers."""
    made = TensorProto(name="h", data_type=F)
    made.dims.extend(dims)
    return made


def expanded(size):
    """What is made of no image, and is larger than memory."""
    nodes = [
        helper.make_node("Expand", ["one", "s"], ["big"]),
        helper.make_node("ReduceMean", ["big"], ["r"], keepdims=0),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    weights = [tensor("s", np.array([1, 3, size, size])), tensor("one", np.ones((1, 1, 1, 1), np.float32))]
    return {"more": nodes, "pixels": "y", "weights": weights}


def computed(size):
    """The same, of a size that no constant tells."""
    found = expanded(size)
    found["weights"][0] = tensor("half", np.array([1, 3, size // 2, size // 2]))
    found["weights"].append(tensor("two", np.array([1, 1, 2, 2])))
    found["more"].insert(0, helper.make_node("Mul", ["half", "two"], ["s"]))
    return found


def chained(depth):
    """Functions that each call the next one twice."""

    def call(number, given, made):
        return helper.make_node(f"f{number}", [given], [made], domain="own")

    last = helper.make_function(
        "own", f"f{depth}", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    others = [
        helper.make_function("own", f"f{n}", ["a"], ["b"], [call(n + 1, "a", "c"), call(n + 1, "c", "b")],
                             [helper.make_opsetid("own", 1)])
        for n in range(depth)
    ]  # fmt: skip
    return {"more": [call(0, "x", "y")], "pixels": "y", "functions": [*others, last]}


def endless():
    node = helper.make_node("f", ["a"], ["b"], domain="own")
    function = helper.make_function("own", "f", ["a"], ["b"], [node], [helper.make_opsetid("own", 1)])
    return {"more": [helper.make_node("f", ["x"], ["y"], domain="own")], "pixels": "y", "functions": [function]}


def loop():
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )  # fmt: skip
    node = helper.make_node("Loop", ["times", "yes"], [], body=body)
    node.output.append("unused")
    weights = [tensor("times", np.array(2**60)), tensor("yes", np.array(True))]
    return {"more": [node, helper.make_node("Identity", ["x"], ["y"])], "pixels": "y", "weights": weights}


def bare(nodes):
    return model(nodes, weights=[tensor("w", np.ones((3, 2), np.float32))])


CASES = {
    "image of 10^6 × 10^6": lambda: classifier(image=("n", 3, 10**6, 10**6)),
    "Loop of 2^60": lambda: classifier(**loop()),
    "40 GB by a constant": lambda: classifier(**expanded(60_000)),
    "40 GB by a computed size": lambda: classifier(**computed(60_000)),
    "recursive function": lambda: classifier(**endless()),
    "2^30 functions": lambda: classifier(**chained(30)),
    "100 000 nodes": lambda: repeated(classifier(more=[helper.make_node("Relu", ["x"], ["y"])], pixels="y"), 100_000),
    "2^40 elements that are not there": lambda: classifier(weights=[hollow([2**20, 2**20])]),
    "negative size": lambda: classifier(weights=[hollow([-4])]),
    "no nodes": lambda: bare([]),
    "a node without input": lambda: bare([helper.make_node("Relu", [], ["logits"])]),
    "a node without output": lambda: bare([helper.make_node("Relu", ["x"], [])]),
    "only a foreign opset": lambda: classifier(domain="own"),
    "a foreign operator": lambda: classifier(more=[helper.make_node("Magic", ["x"], ["y"], domain="own")], pixels="y"),
}  # fmt: skip
ONLY_PREDICT = {
    "three logits of two classes": lambda: classifier(classes=3, outputs=[value("logits", ["n", 3])]),
    "logits of another number than declared": lambda: classifier(classes=3),
    "classes nested deeply": lambda: _with_facts(classes="[" * 60_000),
    "a mean of 10^400": lambda: _with_facts(mean="[0, 0, 1" + "0" * 400 + "]"),
    "a deviation of 0": lambda: _with_facts(std="[0, 0.5, 0.5]"),
    "images of no size": lambda: classifier(image=("n", 3, 0, 8)),
    "images of any size": lambda: classifier(image=("n", 3, "h", "w")),
    "no numbers": lambda: classifier(scale=np.nan),
    "infinite for an image": lambda: classifier(scale=3e38),
}  # fmt: skip


def _with_facts(**facts):
    made = classifier()
    for entry in made.metadata_props:
        entry.value = facts.get(entry.key, entry.value)
    return made


@functools.cache
def made(case):
    return {**CASES, **ONLY_PREDICT}[case]()


def write(model, path):
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())


@pytest.fixture
def images(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (8, 8), (255 - number, 200, 255)).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def one_line(edge_sel, arguments, seconds):
    before, began = psutil.Process().memory_info().rss, time.process_time()
    found = edge_sel(*arguments)
    took, grown = time.process_time() - began, psutil.Process().memory_info().rss - before
    message = found.err.strip()
    assert found.code in (2, 3, 4) and message.startswith("edge-sel: ") and "\n" not in message, found
    assert took < seconds and grown < 300 << 20, (took, grown)


@pytest.mark.parametrize("case", [*CASES, *ONLY_PREDICT])
def test_what_predict_refuses(case, images, tmp_path, edge_sel):
    write(made(case), tmp_path / "m.onnx")
    one_line(edge_sel, ["predict", tmp_path / "m.onnx", images], 5)


@pytest.mark.parametrize("case", CASES)
def test_what_export_refuses(case, images, tmp_path, edge_sel):
    write(made(case), tmp_path / "m.onnx")
    known = ["--data", images, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--classes", "a,b"]
    one_line(edge_sel, ["export", tmp_path / "m.onnx", *known, "--out", tmp_path / "m.edgepack"], 5)
    assert not (tmp_path / "m.edgepack").exists()


def test_a_model_that_is_good_classifies(images, tmp_path, edge_sel):
    onnx.save(classifier(), tmp_path / "m.onnx")
    found = edge_sel("predict", tmp_path / "m.onnx", images / "a" / "0.png", "--json")
    assert json.loads(found.out)["images"][0]["probability"] == 0.5


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "gone.bin", ""])
def test_tensors_outside_of_the_file(location, tmp_path):
    made = classifier()
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    (tmp_path / "w.bin").write_bytes(bytes(24))
    for folder in (tmp_path / "inner", None):
        with pytest.raises(WireError):
            survey_model(made.SerializeToString(), folder)


def test_a_file_cut_anywhere_is_refused_or_read():
    content = classifier(**chained(3)).SerializeToString()
    assert survey_model(content).nodes == 3 + 8
    for end in range(len(content)):
        try:
            survey_model(content[:end])
        except WireError as error:
            assert "\n" not in str(error)
