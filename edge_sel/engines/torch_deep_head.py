"""The deep head of a pack (``graphs/deep_head.py``) in torch: pooled outputs of layers, added to a model's logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from edge_sel.graphs.deep_head import EPSILON, tap_scale
from edge_sel.pack.manifest import DEEP_HEAD, Tap

_SAME = 1e-3
"""Largest difference between two programs' outputs of one layer, relative to the largest number in it."""


def add_deep_head(model: nn.Module, taps: Sequence[Tap], classes: int, scale: float = 1.0) -> nn.Module:
    """The model, changed in place: a linear layer ``deep_head`` of zeros reads the layers that the taps name.

    ``scale`` is the factor of all layers of the head, ½ of two that are averaged.
    """
    if not taps:
        return model
    layer = nn.Linear(sum(tap.features for tap in taps), classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    model.add_module(DEEP_HEAD, layer)

    def keep(module: nn.Module, given: object, made: torch.Tensor) -> None:
        module.tapped = made

    def add(module: nn.Module, given: object, logits: torch.Tensor) -> torch.Tensor:
        parts = [part for tap in taps for part in _pooled(module.get_submodule(tap.name).tapped, tap)]
        return logits + scale * cast(torch.Tensor, module.get_submodule(DEEP_HEAD)(torch.cat(parts, 1)))

    for tap in taps:
        model.get_submodule(tap.name).register_forward_hook(keep)
    model.register_forward_hook(add)
    return model


def as_in_a_graph(constant: float) -> float:
    """What is left of it in a graph, whose constants are float32: a float64 twin must take the same."""
    return float(np.float32(constant))


def _pooled(made: object, tap: Tap) -> list[torch.Tensor]:
    assert isinstance(made, torch.Tensor)
    mean = made.mean(tap.axes, keepdim=True)
    deviation = ((made - mean) ** 2).mean(tap.axes).add(as_in_a_graph(EPSILON)).sqrt()
    parts = [mean.flatten(1), deviation] if tap.mean else [deviation]
    return [tap_scale(tap) * part for part in parts]


def find_modules(model: nn.Module, image: np.ndarray, made: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Which module has which of these outputs.

    Args:
        model: in evaluation mode.
        image: float32 [1, 3, H, W].
        made: what tensors of its exported graph are for this image.

    Returns:
        the name of a module by the name of each tensor that is a module's output.
    """
    found: dict[str, str] = {}

    def look(name: str, given: torch.Tensor) -> None:
        for tensor, values in made.items():
            if tensor not in found and given.shape == values.shape:
                difference = np.abs(given.numpy() - values).max()
                if difference <= _SAME * max(float(np.abs(values).max()), 1e-6):
                    found[tensor] = name

    handles = [
        module.register_forward_hook(
            lambda _, given, out, name=name: look(name, out) if isinstance(out, torch.Tensor) else None
        )
        for name, module in _inside(model)
    ]
    with torch.inference_mode():
        model(torch.from_numpy(image))
    for handle in handles:
        handle.remove()
    return found


def _inside(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if name)
