"""Official artifacts of onnxruntime-training in a pack: what belongs in them, and what does not.

``official/`` has those of two plans of the built-in pack, made by ``edge-sel export --with ort-training``, so that these
tests need no such runtime.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from edge_sel.errors import PackError
from edge_sel.pack.graph_form import WireError, read_fields
from edge_sel.pack.manifest import artifact_files
from edge_sel.pack.reader import open_pack
from tests.pack.hostile import builtin_files, refused, sealed, write_zip

OFFICIAL = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "official").iterdir())}
LAST = artifact_files("last-c25")


def parameters_of(training: bytes) -> list[str]:
    """In the order of the inputs."""
    names = [value.name for value in onnx.load_from_string(training).graph.input]
    first = names.index("gamma") + 1
    return [n for n in names[first:] if not n.endswith((".buffer", "lazy_reset_grad")) and not n.startswith("rows::")]


def with_artifacts(change=lambda files, body: None) -> dict[str, bytes]:
    """The built-in pack with the artifacts of both plans, changed and sealed again."""
    files, body = builtin_files()
    files |= OFFICIAL
    plans = {plan: parameters_of(files[artifact_files(plan).training]) for plan in ("head", "last-c25")}
    body |= {"ort_training": {"version": "1.19.2", "parameters": plans}}
    change(files, body)
    return sealed(files, body)


def with_model(name: str, change) -> dict[str, bytes]:
    def changed(files, body):
        model = onnx.load_from_string(files[name])
        change(model)
        files[name] = model.SerializeToString()

    return with_artifacts(changed)


def test_a_pack_with_artifacts_opens(tmp_path):
    pack = open_pack(write_zip(tmp_path / "pack.edgepack", with_artifacts()))
    assert pack.manifest.ort_training and pack.manifest.ort_training.version == "1.19.2"
    assert pack.graph(LAST.training) == OFFICIAL[LAST.training]
    assert "head.weight" in pack.manifest.ort_training.parameters["head"]


def node(op, **more):
    return lambda m: m.graph.node.append(helper.make_node(op, ["x"], ["odd"], **more))


MODELS = {
    "an operator that nobody needs": node("NonZero"),
    "a loop": node("Loop", body=helper.make_graph([], "b", [], [])),
    "a foreign operator": node("Inverse", domain="com.microsoft"),
    "an operator of another domain": node("Relu", domain="ai.onnx.ml"),
    "another operator set": lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1)),
    "a function": lambda m: m.functions.append(
        helper.make_function("d", "F", [], [], [], [helper.make_opsetid("", 18)])
    ),
    "one more input": lambda m: m.graph.input.append(helper.make_tensor_value_info("secret", 1, [1])),
    "one more output": lambda m: m.graph.output.append(helper.make_tensor_value_info("secret", 1, [1])),
    "a weight of another shape": lambda m: m.graph.input[-2].type.tensor_type.shape.dim.add(dim_value=2),
    "a format of the future": lambda m: setattr(m, "ir_version", 99),
    "a weight inside": lambda m: m.graph.initializer.append(helper.make_tensor("head.weight", 1, [1], [0.0])),
    "a file outside": lambda m: m.graph.initializer.append(
        onnx.TensorProto(
            name="w", data_type=1, dims=[1], data_location=1,
            external_data=[onnx.StringStringEntryProto(key="location", value="/etc/hostname")],
        )
    ),
}  # fmt: skip


@pytest.mark.sampled(5)
@pytest.mark.parametrize("file", [LAST.training, LAST.eval])
@pytest.mark.parametrize("what", MODELS)
def test_a_model_holds_what_the_exporter_writes(tmp_path, file, what):
    refused(write_zip(tmp_path / "bad.edgepack", with_model(file, MODELS[what])), file)


def drop(files, name):
    del files[name]


FILES = {
    "no training model": lambda files, body: drop(files, LAST.training),
    "no checkpoint": lambda files, body: drop(files, LAST.checkpoint),
    "another optimizer": lambda files, body: body.update(optimizer="adam"),
    "no optimizer": lambda files, body: files.update({LAST.optimizer: files[LAST.eval]}),
    "an empty optimizer": lambda files, body: files.update({LAST.optimizer: b""}),
    "a plan that is none": lambda files, body: body["ort_training"]["parameters"].update(other=[]),
    "a parameter that is none": lambda files, body: body["ort_training"]["parameters"]["head"].append("other"),
    "fewer parameters": lambda files, body: body["ort_training"]["parameters"]["head"].pop(),
    "another plan's model": lambda files, body: files.update({LAST.training: files["ort-training-head.onnx"]}),
    "no version": lambda files, body: body["ort_training"].pop("version"),
    "a version that is a number": lambda files, body: body["ort_training"].update(version=1),
    "a file beside": lambda files, body: files.update({"ort-checkpoint-full": b"x"}),
}


@pytest.mark.parametrize("what", FILES)
def test_the_files_are_those_of_the_manifest(tmp_path, what):
    with pytest.raises(PackError) as caught:
        open_pack(write_zip(tmp_path / "bad.edgepack", with_artifacts(FILES[what])))
    assert "\n" not in str(caught.value)


def test_the_fixture_is_read_field_by_field():
    """A file that is cut anywhere is refused, not half read."""
    with pytest.raises(WireError):
        read_fields(OFFICIAL[LAST.training][:-7], 1000)
