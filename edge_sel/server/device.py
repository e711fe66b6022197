"""Where the server trains, and in which precision."""

from __future__ import annotations

import torch

from edge_sel.errors import UsageError


def device_of(name: str) -> torch.device:
    """The named device; ``auto`` is a graphics card if there is one.

    Raises:
        UsageError: torch does not know it, or it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        what = f"--device cannot be used, {str(error).splitlines()[0]}"
        raise UsageError(what, where=name, fix="auto, cpu or cuda") from error
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Use bfloat16 where the chip multiplies it natively; elsewhere it is slower than float32."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_bf16()
        precision = "bf16" if native else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())
