"""Bring a foreign ONNX graph into the form that plans are compiled from.

One input ``x`` [batch, 3, H, W], one output ``logits`` [batch, classes], the batch size symbolic, everything folded
that does not depend on the image. Each function changes the model in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sel.errors import GraphError
from edge_sel.graphs.builder import prune
from edge_sel.graphs.ir import BATCH, LOGITS
from edge_sel.graphs.shapes import evaluate_node, infer
from edge_sel.server.source.onnx_file import attribute, dimensions, image_input

_PROBABILITIES = ("Softmax", "LogSoftmax")
_SHAPES = ("Identity", "Flatten", "Reshape", "Squeeze", "Cast")
_MOST_FOLDED_BYTES = 256 << 20


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


def fold_constants(model: onnx.ModelProto) -> None:
    """Compute once what depends on no input: ``Constant`` nodes, transposed weights, shapes of weights."""
    graph = model.graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    given = {value.name for value in graph.input} - known.keys()
    kept = []
    for node in graph.node:
        names = [name for name in node.input if name]
        random = node.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
        if random or not all(name in known and name not in given for name in names):
            kept.append(node)
            continue
        values = evaluate_node(node, known)
        if sum(value.nbytes for value in values) > _MOST_FOLDED_BYTES:
            kept.append(node)
            continue
        known.update(zip(node.output, values, strict=False))
    used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    del graph.node[:]
    graph.node.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in known.items() if n in used)
    inputs = [value for value in graph.input if value.name in given]  # old files list their weights here too
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.value_info[:]  # of another batch size, and of what is gone
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def free_batch(model: onnx.ModelProto, batch: int | None) -> None:
    """Where the batch size was fixed: what names it takes it from the image instead.

    These are targets of Reshape and Expand, and constants with a row for each image, such as class tokens, that are
    joined with what is made of the images.

    Args:
        model: its input is called ``x``, and what is constant is an initializer.
        batch: the size; None where it was never fixed.
    """
    if batch is None:
        return
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
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
        elif node.op_type == "Concat" and attribute(node, "axis", 0) != 0 and set(node.input) - constants.keys():
            for place, given in enumerate(node.input):
                value = constants.get(given)
                if value is not None and value.ndim and len(value) == batch and (value == value[:1]).all():
                    name = f"{node.output[0]}::{place}"
                    graph.initializer.append(numpy_helper.from_array(value[:1].copy(), f"{name}::row"))
                    shape = with_batch(f"{name}::shape", np.array(value.shape[1:]))
                    nodes.append(helper.make_node("Expand", [f"{name}::row", shape], [name], name))
                    node.input[place] = name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


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
    if all(node.op_type == "Transpose" and list(attribute(node, "perm", [])) == [0, 3, 1, 2] for node in readers):
        nodes = [node for node in nodes if node not in readers]  # the graph turns it first thing: x is what it wants
        turned = [node.output[0] for node in readers]
    else:
        nodes.insert(0, helper.make_node("Transpose", ["x"], [old], "image", perm=[0, 2, 3, 1]))
        turned = []
    del graph.node[:]
    graph.node.extend(nodes)
    for name in turned:
        _rename(graph, name, "x")
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, 3, dims[1], dims[2]]))


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
        told = ", ".join(f"{name} {'×'.join(str(size or '?') for size in shape)}" for name, shape in sizes.items())
        what = "several outputs may be the logits" if found else "no output is a batch of logits [N, classes]"
        raise GraphError(f"{what}; this is not a plain classifier", where=f"{path}: {told}",
                         fix="export the classifier alone, with its logits as the one output")  # fmt: skip
    chosen = next(iter(found))
    if producers[chosen].op_type == "Sigmoid":
        raise GraphError("the model ends in a Sigmoid: each class is decided on its own", where=f"{path}: {chosen}",
                         fix="a classifier has one logit per class, of which one is right")  # fmt: skip
    _finish(graph, chosen, len(shapes[chosen]))
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


def _finish(graph: onnx.GraphProto, name: str, rank: int) -> None:
    """Make ``name`` the one output, flat, and drop what only others needed."""
    prune(graph, [name])
    if rank > 2:
        graph.node.append(helper.make_node("Flatten", [name], [LOGITS], "logits", axis=1))
    else:
        _rename(graph, name, LOGITS)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, None))


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
