"""Export a torch classifier as a forward ONNX graph that keeps parameter names and batch normalisation."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import nn

from edge_sel.errors import GraphError
from edge_sel.graphs.ir import BATCH, OPSET, Forward
from edge_sel.graphs.read import read_forward


def export_forward(model: nn.Module, image_size: tuple[int, int]) -> Forward:
    """The model in evaluation mode as a parsed forward graph; the batch size is symbolic.

    Raises:
        GraphError: torch cannot export the model, or a parameter did not survive by name.
    """
    example = torch.zeros(2, 3, *image_size)
    model = model.cpu().eval()
    try:
        with _quiet():
            proto = _export(model, example)
    except Exception as error:  # the exporter has no common exception type
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps what went wrong in what to do about it
            cause = cause.__cause__
        reason = (str(cause).strip() or repr(cause)).splitlines()[0]
        raise GraphError(
            f"torch cannot export {type(model).__name__} to ONNX ({reason})",
            fix="make its forward free of data-dependent control flow",
        ) from error
    parameters = {name for name, _ in model.named_parameters()}
    forward = read_forward(proto, parameters)
    lost = sorted(parameters - forward.parameters)
    if lost:
        raise GraphError("a parameter was lost in the export", where=", ".join(lost[:5]))
    return forward


def _export(model: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    import onnx_ir as ir
    from onnxscript import optimizer

    program = _traced(model, example)
    if not isinstance(program.model.graph.inputs[0].shape[0], ir.SymbolicDim):
        # A forward that asks for len(x) gets a number, unless its bytecode is traced.
        axes = ({0: torch.export.Dim(BATCH)},)
        program = _traced(torch.export.export(model, (example,), dynamic_shapes=axes, strict=True), example)
    parameters = {name for name, _ in model.named_parameters()}
    optimizer.fold_constants(  # but nothing that a plan may train: a folded Transpose would lose the weight's name
        program.model,
        should_fold=lambda node: False if any(v and v.name in parameters for v in node.inputs) else None,
    )
    optimizer.remove_unused_nodes(program.model)
    proto: onnx.ModelProto = program.model_proto
    return proto


def _traced(model: nn.Module | torch.export.ExportedProgram, example: torch.Tensor) -> torch.onnx.ONNXProgram:
    program = torch.onnx.export(
        model, (example,), dynamo=True, optimize=False, opset_version=OPSET, verbose=False,
        input_names=["x"], output_names=["logits"], dynamic_shapes=({0: torch.export.Dim(BATCH)},),
    )  # fmt: skip
    assert program is not None
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout, through warnings and through logging; its failures arrive as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
