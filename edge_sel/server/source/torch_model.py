"""Classifiers that torch can build: warmup checkpoints, torchvision, timm, and a factory in a user's file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.torch import BuildModel, TorchEngine
from edge_sel.models.registry import build
from edge_sel.server.forward import export_forward
from edge_sel.server.parity import check_parity
from edge_sel.server.source.base import Source, WarmupInfo
from edge_sel.server.warmup import load


def from_checkpoint(path: Path) -> Source:
    """A warmup checkpoint of ``edge-sel pretrain``."""
    return from_module(*load(path))


def from_module(model: nn.Module, info: WarmupInfo, *, new_head: bool = False, build: BuildModel = build) -> Source:
    """A torch model with one output, the logits [N, classes].

    Args:
        model: with its weights.
        info: what it is.
        new_head: see ``Source``.
        build: makes the same model again, for the parity check.
    """
    forward = export_forward(model, info.image_size)
    weights = {n: v.detach().numpy() for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    reference, twin = (TorchEngine(device="cpu", dtype=dtype, build=build) for dtype in (torch.float32, torch.float64))
    check = partial(check_parity, engine=OrtEngine(), reference=reference, twin=twin)
    return Source(info, forward, weights, check, new_head)
