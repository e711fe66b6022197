"""Read a foreign ONNX file, and bring its graph into the form that plans are compiled from; with no torch at all.

One input ``x`` [batch, 3, H, W], one output ``logits`` [batch, classes], the batch size symbolic, everything folded
that does not depend on the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter

from edge_sel.arrays import Arrays
from edge_sel.errors import BadInputError, GraphError
from edge_sel.graphs.builder import prune, reference_to
from edge_sel.graphs.ir import BATCH, IR_VERSION, LOGITS, OPSET
from edge_sel.graphs.shapes import evaluate_node, infer
from edge_sel.server.source.base import first_line, replace_all
from edge_sel.server.source.onnx_weights import constants_of, is_large, take_out_weights

_QUANTIZED = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
        "MatMulInteger", "QLinearAdd", "QGemm",
    }
)  # fmt: skip
_OLDEST_OPSET = 7
_MOST_CHANNELS = 4
"""An image has more pixels aside; what has fewer is a constant for each channel."""
_PROBABILITIES = ("Softmax", "LogSoftmax")
_SHAPES = ("Identity", "Flatten", "Reshape", "Squeeze", "Cast")
_MOST_FOLDED_BYTES = 256 << 20
_HALF = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}


def load_onnx(path: Path) -> tuple[onnx.ModelProto, Arrays]:
    """The model of the file, its functions inlined, and its weights, which the model only refers to.

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
        raise BadInputError("the file's external data cannot be read", where=f"{path}: {first_line(error)}",
                            fix="put the data files beside it, under their own names") from error  # fmt: skip
    model, weights = take_out_weights(model)
    if model.functions:
        model = inliner.inline_local_functions(model)
    _require_plain_float32(model, path)
    return model, weights


def _require_plain_float32(model: onnx.ModelProto, path: Path) -> None:
    graphs = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    version = operator_set(model)
    if version < _OLDEST_OPSET:
        raise GraphError(f"operator set {version} is too old", where=path,
                         fix=f"export the model with opset {_OLDEST_OPSET} to {OPSET}")  # fmt: skip
    if version > onnx.defs.onnx_opset_version():
        raise GraphError(f"operator set {version} is newer than what onnx {onnx.__version__} knows", where=path,
                         fix=f"export the model with opset {OPSET}")  # fmt: skip
    for node in model.graph.node:
        if node.op_type in _QUANTIZED:
            what, fix = "the file is quantized: integers cannot be trained", "export the float32 model"
        elif node.domain not in ("", "ai.onnx"):
            what = f"operator {node.op_type} is not a standard ONNX operator"
            fix = "export without optimisations for one runtime"
        elif any(given.type in graphs for given in node.attribute):
            what = f"operator {node.op_type} holds a graph: a step cannot branch or loop"
            fix = "make the model's forward free of control flow"
        elif not onnx.defs.has(node.op_type, version):
            what, fix = f"operator {node.op_type} is not in operator set {version}", f"export with opset {OPSET}"
        else:
            continue
        raise GraphError(what, where=f"{path}: {node.op_type} {node.name or node.output[0]}", fix=fix)
    for tensor in model.graph.initializer:
        if tensor.data_type in _HALF:
            what, where = f"weights of {_HALF[tensor.data_type]}", f"{path}: {tensor.name}"
            raise GraphError(what, where=where, fix="export the model in float32")


def operator_set(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model uses; 0 where it names none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def to_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The same model in the operator set of a pack.

    An older one is converted by ONNX's own converter. Of a newer one, operators that the pack's set has too are taken
    as they are; that this changes nothing is checked later, on numbers.

    Raises:
        GraphError: it cannot be converted; the message names the operator.
    """
    version = operator_set(model)
    if version < OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except (RuntimeError, ValueError) as error:
            raise GraphError(f"operator set {version} cannot be converted to {OPSET} ({first_line(error)})", where=path,
                             fix=f"export the model with opset {OPSET}") from error  # fmt: skip
    for node in model.graph.node if version > OPSET else ():
        try:
            known = onnx.defs.get_schema(node.op_type, OPSET).attributes
            unknown = any(given.name not in known for given in node.attribute)
        except onnx.defs.SchemaError:  # the pack's operator set has no such operator
            unknown = True
        if unknown:
            raise GraphError(f"operator {node.op_type} of operator set {version} is newer than {OPSET}",
                             where=f"{path}: {node.name or node.output[0]}",
                             fix=f"export the model with opset {OPSET}")  # fmt: skip
    replace_all(model.opset_import, [helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return model


def dimensions(value: onnx.ValueInfoProto) -> list[int | None]:
    """Of a tensor; None where only known at run time, which some exporters write as -1."""
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def image_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    """The one input that is no weight: images [N, 3, H, W] or [N, H, W, 3] in float32.

    Raises:
        GraphError: there is another number of inputs, or it is no colour image.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        sizes = [dimensions(value) for value in inputs]
        images = [dims for dims in sizes if len(dims) == 4 and any((size or 0) > _MOST_CHANNELS for size in dims)]
        lost = len(images) == 1 and all(None not in dims for dims in sizes if dims is not images[0])
        fix = (
            "the others are constants that the exporter did not store: of a Keras model, export a SavedModel and "
            "convert it by `python -m tf2onnx.convert --saved-model DIR --output FILE`"
        )
        what = f"a classifier has one input, this file has {len(inputs)}"
        raise GraphError(what, where=f"{path}: {names}", fix=fix if lost else None)
    (image,) = inputs
    kind = image.type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        raise GraphError(f"the input is of {TensorProto.DataType.Name(kind).lower()}", where=f"{path}: {image.name}",
                         fix="export the model with a float32 image as input")  # fmt: skip
    dims = dimensions(image)
    if len(dims) != 4 or 3 not in (dims[1], dims[3]):
        shape = "×".join(str(size or "?") for size in dims) or "unknown shape"
        raise GraphError(f"the input is no batch of colour images ({shape})", where=f"{path}: {image.name}",
                         fix="its shape must be [N, 3, H, W] or [N, H, W, 3]")  # fmt: skip
    return image


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or the operator's default."""
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def set_image_size(model: onnx.ModelProto, size: tuple[int, int] | None, path: Path) -> tuple[int, int]:
    """Fix height and width, and make the batch size symbolic; returns the size.

    Raises:
        GraphError: the graph has another size than asked for, or leaves it open and none was asked for.
    """
    image = image_input(model, path)
    dims = dimensions(image)
    first = 2 if dims[1] == 3 else 1
    found = (dims[first], dims[first + 1])
    if None in found and size is None:
        raise GraphError(
            "the image size is dynamic", where=f"{path}: {image.name}", fix="give --image-size, such as 224"
        )
    if size is not None and any(has not in (None, wanted) for has, wanted in zip(found, size, strict=True)):
        raise GraphError(f"the image size is fixed at {found[0]}×{found[1]}", where=f"{path}: {image.name}",
                         fix="leave --image-size out, or export the model at the size that you want")  # fmt: skip
    height, width = size or (found[0] or 0, found[1] or 0)
    shape = image.type.tensor_type.shape
    shape.dim[first].dim_value, shape.dim[first + 1].dim_value = height, width
    shape.dim[0].dim_param = BATCH
    return height, width


def fold_constants(model: onnx.ModelProto, weights: Arrays) -> None:
    """Compute once what depends on no input: ``Constant`` nodes, transposed weights, shapes of weights.

    What is large joins ``weights``, and the graph refers to it.
    """
    graph = model.graph
    known = constants_of(model, weights)
    given = {value.name for value in graph.input} - known.keys()
    kept = []
    for node in graph.node:
        random = node.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
        if not random and all(name in known and name not in given for name in node.input if name):
            values = evaluate_node(node, known)
            if sum(value.nbytes for value in values) <= _MOST_FOLDED_BYTES:
                known.update(zip(node.output, values, strict=False))
                continue
        kept.append(node)
    used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    replace_all(graph.node, kept)
    weights |= {name: value for name, value in known.items() if name in used and is_large(value)}
    replace_all(graph.initializer, [
        reference_to(name, value.shape) if name in weights else numpy_helper.from_array(np.asarray(value), name)
        for name, value in known.items() if name in used
    ])  # fmt: skip
    replace_all(graph.input, [value for value in graph.input if value.name in given])  # old files list weights too
    del graph.value_info[:]  # of another batch size, and of what is gone
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def free_batch(model: onnx.ModelProto, weights: Arrays, batch: int | None) -> None:
    """Where the batch size was fixed: what names it takes it from the image instead.

    These are targets of Reshape and Expand, and constants with a row for each image, such as class tokens, that are
    joined with what is made of the images.

    Args:
        model: its input is called ``x``, and what is constant is an initializer.
        weights: what the graph refers to.
        batch: the size; None where it was never fixed.
    """
    if batch is None:
        return
    graph = model.graph
    constants = constants_of(model, weights)
    nodes: list[onnx.NodeProto] = []

    def add(name: str, value: Sequence[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def with_batch(name: str, rest: np.ndarray) -> str:
        """A shape whose first size is that of the image's batch."""
        nodes.append(helper.make_node("Shape", ["x"], [f"{name}::batch"], f"{name}::batch", start=0, end=1))
        tail = add(f"{name}::rest", rest.tolist())
        nodes.append(helper.make_node("Concat", [f"{name}::batch", tail], [name], name, axis=0))
        return name

    for node in graph.node:
        target = constants.get(node.input[1]) if node.op_type in ("Reshape", "Expand") else None
        if target is not None and len(target) and target[0] == batch:
            name = f"{node.output[0]}::target"
            if node.op_type == "Expand":
                node.input[1] = with_batch(name, target[1:])
            elif 0 not in target:
                # All but one size are known: the first is what is left, whatever the rows were before.
                node.input[1] = add(name, [-1 if -1 not in target else 0, *target[1:].tolist()])
                del node.attribute[:]  # allowzero: a zero is now what is copied
        elif node.op_type == "Concat" and _attribute(node, "axis", 0) != 0 and set(node.input) - constants.keys():
            for place, given in enumerate(node.input):
                value = constants.get(given)
                if value is not None and value.ndim and len(value) == batch and (value == value[:1]).all():
                    name = f"{node.output[0]}::{place}"
                    graph.initializer.append(numpy_helper.from_array(value[:1].copy(), f"{name}::row"))
                    shape = with_batch(f"{name}::shape", np.array(value.shape[1:]))
                    nodes.append(helper.make_node("Expand", [f"{name}::row", shape], [name], name))
                    node.input[place] = name
        nodes.append(node)
    replace_all(graph.node, nodes)


def name_image(model: onnx.ModelProto, path: Path) -> None:
    """Call the input ``x``; where it is laid out [N, H, W, 3], x [N, 3, H, W] is turned first."""
    graph, image = model.graph, image_input(model, path)
    dims, old = dimensions(image), image.name
    if dims[1] == 3:
        _rename(graph, old, "x")
        image.name = "x"
        return
    readers = [node for node in graph.node if old in node.input]
    nodes = list(graph.node)
    if all(node.op_type == "Transpose" and list(_attribute(node, "perm", [])) == [0, 3, 1, 2] for node in readers):
        nodes = [node for node in nodes if node not in readers]  # the graph turns it first thing: x is what it wants
        turned = [node.output[0] for node in readers]
    else:
        nodes.insert(0, helper.make_node("Transpose", ["x"], [old], "image", perm=[0, 2, 3, 1]))
        turned = []
    replace_all(graph.node, nodes)
    for name in turned:
        _rename(graph, name, "x")
    replace_all(graph.input, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, 3, dims[1], dims[2]])])


def choose_logits(model: onnx.ModelProto, batch: int | None, classes: int | None, path: Path) -> str:
    """Keep the one output [batch, classes], before any softmax, as ``logits``; returns the name that it had.

    Args:
        model: with a symbolic batch size.
        batch: the size that the file was written for, if it was for one.
        classes: how many logits are expected, to choose among several outputs.
        path: of the file.

    Raises:
        GraphError: no output is of that kind, or several are.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    shapes = infer(model, {BATCH: batch or 1}).shapes
    found: dict[str, int] = {}
    for output in graph.output:
        name = _before_softmax(output.name, producers)
        shape = shapes.get(name, ())
        if len(shape) >= 2 and shape[1] and all(size == 1 for size in shape[2:]):
            found[name] = int(shape[1])
    if classes is not None and len(found) > 1:
        found = {name: count for name, count in found.items() if count == classes}
    if len(found) != 1:
        sizes = {value.name: shapes.get(value.name, ()) for value in graph.output}
        listed = ", ".join(f"{name} {'×'.join(str(size or '?') for size in shape)}" for name, shape in sizes.items())
        what = "several outputs may be the logits" if found else "no output is a batch of logits [N, classes]"
        raise GraphError(f"{what}; this is not a plain classifier", where=f"{path}: {listed}",
                         fix="export the classifier alone, with its logits as the one output")  # fmt: skip
    chosen = next(iter(found))
    if producers[chosen].op_type == "Sigmoid":
        raise GraphError("the model ends in a Sigmoid: each class is decided on its own", where=f"{path}: {chosen}",
                         fix="a classifier has one logit per class, of which one is right")  # fmt: skip
    prune(graph, [chosen])
    if len(shapes[chosen]) > 2:
        graph.node.append(helper.make_node("Flatten", [chosen], [LOGITS], "logits", axis=1))
    else:
        _rename(graph, chosen, LOGITS)
    replace_all(graph.output, [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, None)])
    return chosen


def _before_softmax(name: str, producers: dict[str, onnx.NodeProto]) -> str:
    """The tensor that a trailing Softmax normalises: cross-entropy takes logits, and log-probabilities are some."""
    current = name
    while current in producers:
        node = producers[current]
        if node.op_type in _PROBABILITIES:
            return str(node.input[0])
        if node.op_type not in _SHAPES:
            break
        current = node.input[0]
    return name


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
