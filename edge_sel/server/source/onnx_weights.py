"""The weights of an ONNX file apart from its graph: each is held once, and whatever copies the graph copies little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edge_sel.arrays import Arrays
from edge_sel.engines.native import ort
from edge_sel.engines.ort import OrtEngine
from edge_sel.graphs.builder import reference_to
from edge_sel.graphs.ir import Absent, Forward
from edge_sel.server.source.base import replace_all

FEW = 1024
"""Numbers of a constant that stays in the graph: what tells shapes and sizes is smaller."""


def take_out_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Arrays]:
    """The model with a reference for each large tensor of float32, and these tensors by name.

    A ``Constant`` node that holds one becomes a reference, too.
    """
    weights: Arrays = {}
    kept = []
    for node in model.graph.node:
        held = [given.t for given in node.attribute if given.name == "value"] if node.op_type == "Constant" else []
        if held and _holds_much(held[0]):
            weights[node.output[0]] = _values(held[0])
        else:
            kept.append(node)
    tensors = [reference_to(name, values.shape) for name, values in weights.items()]
    for tensor in model.graph.initializer:
        if _holds_much(tensor):
            weights[tensor.name] = _values(tensor)
            tensor = reference_to(tensor.name, tuple(tensor.dims))
        tensors.append(tensor)
    replace_all(model.graph.node, kept)
    replace_all(model.graph.initializer, tensors)
    # A message keeps the memory of what was taken out of it.
    return onnx.load_model_from_string(model.SerializeToString()), weights


def is_large(values: np.ndarray) -> bool:
    """Whether the graph only refers to it."""
    return values.dtype == np.float32 and values.size > FEW


def _holds_much(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) > FEW


def _values(tensor: onnx.TensorProto) -> np.ndarray:
    return np.ascontiguousarray(numpy_helper.to_array(tensor))


def constants_of(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> Arrays:
    """Every constant of the graph by name."""
    return {
        tensor.name: weights[tensor.name] if tensor.name in weights else np.asarray(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
    }


def with_references(forward: Forward) -> tuple[Forward, Arrays]:
    """The graph without the values of its large tensors of float32, and these by name, to feed a session with."""
    large = {name: value for name, value in forward.initializers.items() if is_large(value)}
    absent = {name: Absent.of(value.shape) for name, value in large.items()}
    return replace(forward, initializers={**forward.initializers, **absent}), large


def session_of(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> ort.InferenceSession:
    """Load a graph with those of the ``weights`` that it refers to."""
    referred = {tensor.name for tensor in model.graph.initializer}
    return OrtEngine().session(model.SerializeToString(), {n: v for n, v in weights.items() if n in referred})
