"""Read a trained classifier from a foreign ONNX file, with no torch at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, inliner, version_converter

from edge_sel.errors import BadInputError, GraphError
from edge_sel.graphs.ir import IR_VERSION, OPSET

QUANTIZED = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
        "MatMulInteger", "QLinearAdd", "QGemm",
    }
)  # fmt: skip
OLDEST_OPSET = 7
_MOST_CHANNELS = 4
"""An image has more pixels aside; what has fewer is a constant for each channel."""
_HALF = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}


def load_onnx(path: Path) -> onnx.ModelProto:
    """The model of the file, its functions inlined and its external data loaded.

    Raises:
        BadInputError: no such file, not an ONNX file, or its external data are missing.
        GraphError: it is quantized, of another precision than float32, or uses operators of another domain.
    """
    if not path.is_file():
        raise BadInputError("no such ONNX file", where=path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # of protobuf, whose own class has no stable name
        raise BadInputError("not an ONNX file", where=f"{path}: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise BadInputError("not an ONNX file, or an empty one", where=path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        told = str(error).splitlines()[0]
        raise BadInputError("the file's external data cannot be read", where=f"{path}: {told}",
                            fix="put the data files beside it, under their own names") from error  # fmt: skip
    if model.functions:
        model = inliner.inline_local_functions(model)
    _require_plain_float32(model, path)
    return model


def _require_plain_float32(model: onnx.ModelProto, path: Path) -> None:
    for node in model.graph.node:
        where = f"{path}: {node.op_type} {node.name or node.output[0]}"
        if node.op_type in QUANTIZED:
            raise GraphError("the file is quantized: integers cannot be trained", where=where,
                             fix="export the float32 model")  # fmt: skip
        if node.domain not in ("", "ai.onnx"):
            raise GraphError(f"operator {node.op_type} is not a standard ONNX operator", where=where,
                             fix="export without optimisations for one runtime")  # fmt: skip
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute
        ):
            raise GraphError(f"operator {node.op_type} holds a graph: a step cannot branch or loop", where=where,
                             fix="make the model's forward free of control flow")  # fmt: skip
    for tensor in model.graph.initializer:
        if tensor.data_type in _HALF:
            raise GraphError(f"weights of {_HALF[tensor.data_type]}", where=f"{path}: {tensor.name}",
                             fix="export the model in float32")  # fmt: skip


def to_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The same model in the operator set of a pack.

    An older one is converted by ONNX's own converter. Of a newer one, operators that the pack's set has too are taken
    as they are; that this changes nothing is checked later, on numbers.

    Raises:
        GraphError: it cannot be converted; the message names the operator.
    """
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if version < OLDEST_OPSET:
        raise GraphError(f"operator set {version} is too old", where=path,
                         fix=f"export the model with opset {OLDEST_OPSET} to {OPSET}")  # fmt: skip
    if version < OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except (RuntimeError, ValueError) as error:
            told = str(error).strip().splitlines()[0]
            raise GraphError(f"operator set {version} cannot be converted to {OPSET} ({told})", where=path,
                             fix=f"export the model with opset {OPSET}") from error  # fmt: skip
    for node in model.graph.node if version > OPSET else ():
        known = _attributes_of(node.op_type)
        unknown = (
            sorted({attribute.name for attribute in node.attribute} - known) if known is not None else ["the whole"]
        )
        if unknown:
            raise GraphError(f"operator {node.op_type} of operator set {version} is newer than {OPSET}",
                             where=f"{path}: {node.name or node.output[0]}",
                             fix=f"export the model with opset {OPSET}")  # fmt: skip
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return model


def _attributes_of(op: str) -> set[str] | None:
    """Names of the attributes that the operator has in the pack's operator set; None where it has no such operator."""
    try:
        return set(onnx.defs.get_schema(op, OPSET).attributes)
    except onnx.defs.SchemaError:
        return None


def dimensions(value: onnx.ValueInfoProto) -> list[int | None]:
    """Of a tensor; None where only known at run time, which some exporters write as -1."""
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def _known(value: onnx.ValueInfoProto) -> list[int]:
    return [0, *(size for size in dimensions(value) if size)]


def image_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    """The one input that is no weight: images [N, 3, H, W] or [N, H, W, 3] in float32.

    Raises:
        GraphError: there is another number of inputs, or it is no colour image.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        images = [value for value in inputs if len(dimensions(value)) == 4 and max(_known(value)) > _MOST_CHANNELS]
        lost = len(images) == 1 and all(None not in dimensions(value) for value in inputs if value is not images[0])
        fix = (
            "the others are constants that the exporter did not store: of a Keras model, export a SavedModel and "
            "convert it by `python -m tf2onnx.convert --saved-model DIR --output FILE`"
            if lost
            else None
        )
        raise GraphError(f"a classifier has one input, this file has {len(inputs)}", where=f"{path}: {names}", fix=fix)
    (image,) = inputs
    kind = image.type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        raise GraphError(f"the input is of {TensorProto.DataType.Name(kind).lower()}", where=f"{path}: {image.name}",
                         fix="export the model with a float32 image as input")  # fmt: skip
    dims = dimensions(image)
    if len(dims) != 4 or 3 not in (dims[1], dims[3]):
        told = "×".join(str(size or "?") for size in dims) or "unknown shape"
        raise GraphError(f"the input is no batch of colour images ({told})", where=f"{path}: {image.name}",
                         fix="its shape must be [N, 3, H, W] or [N, H, W, 3]")  # fmt: skip
    return image


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or the operator's default."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default
