"""Rewrite a training graph for the CUDA provider, which has no kernel for batch normalisation in training mode."""

from __future__ import annotations

import numpy as np
import onnx


def with_plain_statistics(graph: bytes) -> bytes:
    """The graph without ``BatchNormalization`` in training mode, for which the CUDA provider has no kernel.

    The batch's mean and population variance come from means instead; the running ones are mixed with them as the
    operator does.
    """
    model = onnx.load_model_from_string(graph)
    before = list(model.graph.node)
    del model.graph.node[:]
    for node in before:
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "BatchNormalization" and found.get("training_mode"):
            _normalise(model.graph, node, found.get("epsilon", 1e-5), found.get("momentum", 0.9))
        else:
            model.graph.node.append(node)
    return bytes(model.SerializeToString())


def _normalise(graph: onnx.GraphProto, node: onnx.NodeProto, epsilon: float, momentum: float) -> None:
    """Append what one such operator computes; the names follow from its own."""
    own = node.output[0]

    def name(of: str) -> str:
        return f"{own}::{of}"

    def append(op: str, inputs: list[str], output: str, **attributes: float) -> None:
        graph.node.append(onnx.helper.make_node(op, inputs, [output], output, **attributes))

    constants = {"flat": np.array([0, 0, -1]), "axes": np.array([0, 2]), "momentum": np.float32(momentum)}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name(n)) for n, v in constants.items())
    x, scale, bias, *old = node.input
    append("Reshape", [x, name("flat")], name("rows"))  # [N, C, the rest], whatever the rank is
    append("ReduceMean", [name("rows"), name("axes")], name("centre"), keepdims=1)
    append("Sub", [name("rows"), name("centre")], name("centred"))
    append("Mul", [name("centred"), name("centred")], name("squares"))
    for fresh, of in (("mean", "rows"), ("variance", "squares")):
        append("ReduceMean", [name(of), name("axes")], name(fresh), keepdims=0)
    append("BatchNormalization", [x, scale, bias, name("mean"), name("variance")], own, epsilon=epsilon)
    for fresh, running, output in zip(("mean", "variance"), old, node.output[1:], strict=False):
        if not output:  # nobody wants it
            continue
        append("Sub", [running, name(fresh)], name(f"{fresh} step"))
        append("Mul", [name(f"{fresh} step"), name("momentum")], name(f"{fresh} kept"))
        append("Add", [name(fresh), name(f"{fresh} kept")], output)
