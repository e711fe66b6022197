"""Make a network of anybody's trainable step by step: one output, nothing random, a head with a bias."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

_PATH_DROPS = {"StochasticDepth": "p", "DropPath": "drop_prob", "DropBlock2d": "drop_prob"}
"""Layers of torchvision and timm that leave out whole paths, and the attribute that says how often."""
_AUXILIARY = ("aux1", "aux2", "AuxLogits", "aux_classifier", "aux_head")


def prepare(model: nn.Module) -> nn.Module:
    """The same network, changed in place.

    - Dropout and stochastic depth are off: a compiled step has no random numbers, and a repeated one is the same.
    - Auxiliary classifiers, which help only a training from scratch, are taken away.
    - A last linear layer without bias gets one of zeros, which a closed form and new classes need.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        drop = _PATH_DROPS.get(type(module).__name__)
        if drop is not None:
            setattr(module, drop, 0.0)
    if getattr(model, "aux_logits", False):
        model.aux_logits = False
        for name in _AUXILIARY:
            if hasattr(model, name):
                setattr(model, name, None)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if linear and linear[-1].bias is None:
        linear[-1].bias = nn.Parameter(torch.zeros(linear[-1].out_features))
    return model


def take_away_last_relu(model: nn.Module) -> nn.Module:
    """Replace the last ReLU by nothing: in such networks as SqueezeNet it stands behind the head. In place."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    if names:
        parent, _, last = names[-1].rpartition(".")
        setattr(model.get_submodule(parent), last, nn.Identity())
    return model
