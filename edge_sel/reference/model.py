"""The model of a run: what it begins with, how its steps are computed, and the operations that really ran."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import re
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from edge_sel.errors import SetupError
from edge_sel.models.registry import build
from edge_sel.reference.systems import FirstWeights, Setup


def start_model(setup: Setup, classes: int, image_size: tuple[int, int], wanted: FirstWeights) -> tuple[nn.Module, str]:
    """The model of a setup, and a word for its first weights.

    Raises:
        SetupError: ImageNet weights were asked for and cannot be had.
        UsageError: unknown model.
    """
    if wanted == "random" or (wanted == "auto" and not setup.imagenet):
        return build(setup.model, classes, image_size), "random"
    try:
        if setup.model != "resnet18-cifar":
            return build(setup.model, classes, image_size, pretrained=True), "ImageNet"
        model = build(setup.model, classes, image_size)
        from torchvision.models import ResNet18_Weights

        published = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        left = take_torchvision_resnet18(model, published)
        return model, f"ImageNet, but {' and '.join(left)} at random"
    except Exception as error:  # no torchvision, no network, a mirror that sends something else
        if wanted == "imagenet":
            raise SetupError("ImageNet weights are not available", where=error, fix="leave out --weights") from error
        short = " ".join(str(error).split())[:120]
        return build(setup.model, classes, image_size), f"random (ImageNet weights are not available: {short})"


def take_torchvision_resnet18(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Copy torchvision's ResNet-18 weights into ours; the names of the layers they do not fit: stem and head."""
    translated = {}
    for name, value in weights.items():
        name = re.sub(r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.", name)
        name = name.replace("downsample", "shortcut").replace(".bn", ".norm")
        name = re.sub(r"^conv1\.", "stem.conv.", re.sub(r"^bn1\.", "stem.norm.", name))
        translated[re.sub(r"^fc\.", "head.", name)] = value
    own = model.state_dict()
    fitting = {name: value for name, value in translated.items() if name in own and value.shape == own[name].shape}
    model.load_state_dict(fitting, strict=False)
    missing = {name.rpartition(".")[0] for name in own if name not in fitting}
    return sorted(missing)


_OLDEST = (7, 0)
"""Compute capability from which on Triton makes kernels: V100, T4 and later."""


class Speed(NamedTuple):
    """How the steps of a run are computed."""

    half: torch.dtype | None
    """What convolutions and matrix products compute in; None: float32."""
    compiled: bool
    why: str
    """Why they are not compiled; empty if they are."""

    def to_json(self) -> dict[str, Any]:
        """For the run's environment."""
        return {"dtype": str(self.half or torch.float32).removeprefix("torch."), "compiled": self.compiled}


class ForwardPass:
    """The forward passes of a model as ``speed`` says; steps with batches of other than ``sizes`` are not compiled."""

    def __init__(self, model: nn.Module, speed: Speed, device: torch.device, sizes: set[int]) -> None:
        self._model, self._half, self._device, self._sizes = model, speed.half, device, sizes
        self._compiled = torch.compile(model, mode="reduce-overhead", dynamic=False) if speed.compiled else model
        if self._half is not None:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of a training step, float32[B, C]."""
        if self._half is None:
            return self._model(x)
        torch.compiler.cudagraph_mark_step_begin()
        forward = self._compiled if len(x) in self._sizes else self._model
        with torch.autocast(self._device.type, self._half):
            return forward(x).float()

    def uncompiled(self, x: torch.Tensor) -> torch.Tensor:
        """The logits outside of steps, where batches have any size, float32[B, C]."""
        with torch.autocast(self._device.type, self._half or torch.bfloat16, enabled=self._half is not None):
            return self._model(x).float()


def fastest(device: torch.device) -> Speed:
    """What the device can do: bfloat16 or, where it has none, float16; compiled by Triton if that can work here."""
    if device.type != "cuda":
        return Speed(None, False, "the device is no GPU")
    half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    why = ""
    if torch.cuda.get_device_capability(device) < _OLDEST:
        why = f"Triton has no kernels for a {torch.cuda.get_device_name(device)}"
    elif importlib.util.find_spec("triton") is None:
        why = "Triton is not installed (torch for Linux brings it; on Windows: pip install triton-windows)"
    elif not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):  # as Triton looks for one
        why = "Triton needs a C compiler (apt install gcc, or name one in CC)"
    return Speed(half, not why, why)


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
