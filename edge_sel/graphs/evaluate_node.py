"""What one operator makes of known values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edge_sel.graphs.ir import OPSET


def evaluate_node(node: onnx.NodeProto, values: Mapping[str, np.ndarray], opset: int = OPSET) -> list[np.ndarray]:
    """The outputs of a node, by ONNX's reference implementation.

    Args:
        node: any; its attributes may not be whole graphs that read other tensors.
        values: of all of its inputs.
        opset: that the node is of.
    """
    names = dict.fromkeys(name for name in node.input if name)
    inputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output if name]
    graph = helper.make_graph([node], "one", inputs, outputs)
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))
    return [np.asarray(value) for value in evaluator.run(None, {name: values[name] for name in names})]
