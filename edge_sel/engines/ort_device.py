"""Where ``ort`` computes: on the processor, or on the device's GPU if that can make a training step."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from edge_sel.engines.native import ort
from edge_sel.errors import EdgeSelError, SetupError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FAILED = ("CUDA", "CUDNN", "CUBLAS", "CUFFT", "cuda runtime", "GPU")
"""Words of an exception that comes from a GPU, as when it has been taken away or has stopped."""


def providers(device: str) -> list[Any]:
    """Of a session; a GPU's session leaves to the processor what it cannot compute."""
    return [CPU] if device == "cpu" else [(CUDA, {"device_id": 0, "arena_extend_strategy": "kSameAsRequested"}), CPU]


def gpu_failed(error: Exception) -> bool:
    """Whether that is what an exception of onnxruntime means."""
    return any(word in str(error) for word in FAILED)


@cache
def why_no_cuda() -> str | None:
    """None where the CUDA provider makes a training step; else why it does not, in one line.

    That it is compiled in says nothing: its libraries may be missing, or the driver too old.
    """
    if CUDA not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} here is built without CUDA"
    from edge_sel.engines.base import Batch, Hyper
    from edge_sel.engines.ort import OrtEngine
    from edge_sel.pack.builtin import builtin_pack

    ort.set_default_logger_severity(4)  # what fails is told once, by us
    pack = builtin_pack()
    image = np.zeros((2, 3, *pack.manifest.model.image_size), np.float32)
    try:
        trainer = OrtEngine(1, device="cuda").trainer(pack, "full", pack.weights())
        losses = trainer.step(Batch(image, np.zeros(2, np.int64), np.ones(2, np.float32)), Hyper(0.0)).losses
    except (EdgeSelError, MemoryError) as error:
        return (str(error) or "it has no memory").splitlines()[0]
    return None if np.isfinite(losses).all() else "its losses are no numbers"


def choose_device(wanted: str) -> tuple[str, str | None]:
    """``cpu`` or ``cuda``, and why a GPU that might have been meant is not used.

    Args:
        wanted: ``auto`` takes the GPU where the CUDA provider is built in and works.

    Raises:
        SetupError: ``cuda`` was asked for and does not work.
    """
    if wanted == "cpu" or (wanted == "auto" and CUDA not in ort.get_available_providers()):
        return "cpu", None
    why = why_no_cuda()
    if why is None:
        return "cuda", None
    if wanted == "cuda":
        raise SetupError("onnxruntime cannot train on a GPU here", where=why, fix="--device cpu")
    return "cpu", why
