"""The form that every compiled graph has."""

from __future__ import annotations

import onnx

from edge_sel.graphs.ir import IR_VERSION, OPSET


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def check_graph(model: onnx.ModelProto, weights: set[str]) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)] and model.ir_version == IR_VERSION
    assert {node.domain for node in model.graph.node} <= {""}
    assert not model.functions
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names)), "ONNX Runtime refuses two nodes of one name"
    constants = [tensor.name for tensor in model.graph.initializer]
    read = {name for node in model.graph.node for name in node.input}
    inputs = {value.name for value in model.graph.input}
    assert len(constants) == len(set(constants)) and not inputs & set(constants)
    assert set(constants) <= read and inputs <= read, "nothing is carried along that no operator reads"
    large = [t.raw_data for t in model.graph.initializer if len(t.dims) > 1 and t.name not in weights]
    assert len(large) == len(set(large)), "constants of the backward pass are shared"
    for tensor in model.graph.initializer:
        if tensor.name not in weights:
            assert len(tensor.raw_data) < 4096, f"{tensor.name}: a weight is stored under another name"
