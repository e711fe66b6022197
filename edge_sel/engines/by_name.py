"""Engines by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from edge_sel.engines.base import Engine
from edge_sel.errors import SetupError


def choose_engine(
    name: str,
    threads: int,
    *,
    spinning: bool = False,
    device: str = "cpu",
    note: Callable[[str], None] = lambda why: None,
) -> Engine:
    """``auto`` is ``ort``: it is the default engine and always installed. Torch's threads know no spinning.

    Args:
        name: of the engine.
        threads: of the processor, 0 for all.
        spinning: whether they wait busily.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU where it works.
        note: told why the processor is taken where a GPU might have been meant.

    Raises:
        SetupError: torch, onnxruntime-training or a GPU was asked for, and is not there or not as it must be.
    """
    if name == "torch":
        if importlib.util.find_spec("torch") is None:
            raise SetupError("the torch engine needs torch", fix="pip install 'edge-sel[server]', or --engine ort")
        from edge_sel.engines.torch import TorchEngine

        return TorchEngine(threads, device)
    if name == "ort-training":
        from edge_sel.engines.ort_training_api import require_training

        require_training()
        from edge_sel.engines.ort_training import OrtTrainingEngine

        if device == "cuda":
            raise SetupError("the ort-training engine runs on the processor", fix="--device cpu, or --engine ort")
        return OrtTrainingEngine(threads, spinning=spinning)
    from edge_sel.engines.ort import OrtEngine, choose_device

    chosen, why = choose_device(device)
    if why is not None:
        note(why)
    return OrtEngine(threads, spinning=spinning, device=chosen)
