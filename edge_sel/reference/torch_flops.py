"""Operations that really run, counted from the layers that were called. The sources' formula is in ``sel.flops``."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import nn


class Work(NamedTuple):
    """Floating-point operations per image; a multiplication with its addition counts two."""

    forward: int
    backward: int


def work_per_image(model: nn.Module, image_size: tuple[int, int]) -> Work:
    """What one image costs in the convolutions and linear layers; all else is below a hundredth of that.

    The backward pass computes a weight gradient only where the weight is trainable, and an input gradient only where
    something before it is. Zeroing values of a gradient afterwards, as the guilt mask does, changes none of this.

    Returns:
        For a ResNet-18 at 32x32 pixels 3.33 GFLOP per trained image: 1.11 forward, 2.22 backward.
    """
    probe = copy.deepcopy(model).to("meta").eval()
    forward = backward = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal forward, backward
        weight: torch.Tensor = module.weight
        # Each output value is a sum over one filter; for a linear layer, over one row.
        cost = 2 * output.numel() * math.prod(weight.shape[1:])
        forward += cost
        backward += cost * (int(weight.requires_grad) + int(inputs[0].requires_grad))

    hooks = [m.register_forward_hook(count) for m in probe.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.enable_grad():
        probe(torch.empty(1, 3, *image_size, device="meta"))
    for hook in hooks:
        hook.remove()
    return Work(forward, backward)
