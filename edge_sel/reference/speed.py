"""How steps run on a device: in half precision and compiled where it can do that, and why not where it cannot."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any, NamedTuple

import torch
from torch import nn

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
    elif not c_compiler():
        why = "Triton needs a C compiler (apt install gcc, or name one in CC)"
    return Speed(half, not why, why)


def c_compiler() -> str | None:
    """The path of what Triton would call, found as Triton does: ``CC``, then gcc, then clang."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
