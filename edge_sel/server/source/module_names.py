"""Which tensors of an exported graph are outputs of the network's modules, where a hook of torch finds them again."""

from __future__ import annotations

import ast

import onnx_ir as ir
import torch
from torch import nn

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Under this key the exporter notes the paths of the modules that a node stands in, and then the node's own name."""


def module_names(program: ir.Model, model: nn.Module, example: torch.Tensor) -> dict[str, str]:
    """The innermost module whose output a tensor is, by the name of the tensor.

    What leaves a module is its output, if the module returns one tensor, and does so once: of several calls a hook
    keeps the last.

    Args:
        program: the exported graph.
        model: in evaluation mode; it is run once.
        example: images [N, 3, H, W].
    """
    usable, found = _called_once(model, example), dict[str, str]()
    for node in program.graph:
        mine = _modules(node)
        for value in node.outputs:
            readers = [_modules(reader) for reader in value.consumers()]
            left = [name for name in mine if value.is_graph_output() or any(name not in other for other in readers)]
            inner = next((name for name in reversed(left) if name in usable), None)
            if value.name and inner:
                found[value.name] = inner
    return found


def _modules(node: ir.Node) -> list[str]:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return [str(scope) for scope in scopes[:-1] if scope]


def _called_once(model: nn.Module, example: torch.Tensor) -> set[str]:
    calls: dict[str, list[object]] = {}
    handles = [
        module.register_forward_hook(
            lambda module, given, made, name=name: calls.setdefault(name, []).append(type(made))
        )
        for name, module in model.named_modules()
    ]
    try:
        with torch.inference_mode():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, made in calls.items() if made == [torch.Tensor]}
