"""Networks of torch without the values of their weights: a dry run reads none, and so they take no memory."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
import torch
from torch import nn


def without_values(model: nn.Module) -> nn.Module:
    """The same network with zeros for parameters, in place; the pages of such zeros are never written to."""
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = torch.from_numpy(np.zeros(parameter.shape, np.float32))
    return model


def leave_out_values(program: ir.Model, names: Collection[str]) -> None:
    """Initializers of these names become references to data outside of the file, which nobody reads."""
    for name in names & program.graph.initializers.keys():
        value = program.graph.initializers[name]
        kept = value.const_value
        if kept is not None:
            value.const_value = ir.ExternalTensor("", 0, 0, kept.dtype, shape=kept.shape, name=name)
