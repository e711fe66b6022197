"""Engines by name."""

from __future__ import annotations

import importlib.util

from edge_sel.engines.base import Engine
from edge_sel.errors import SetupError


def choose_engine(name: str, threads: int, *, spinning: bool = False) -> Engine:
    """``auto`` is ``ort``: it is the default engine and always installed. Torch's threads know no spinning.

    Raises:
        SetupError: torch or onnxruntime-training was asked for and is not installed, or not as it must be.
    """
    if name == "torch":
        if importlib.util.find_spec("torch") is None:
            raise SetupError("the torch engine needs torch", fix="pip install 'edge-sel[server]', or --engine ort")
        from edge_sel.engines.torch import TorchEngine

        return TorchEngine(threads)
    if name == "ort-training":
        from edge_sel.engines.ort_training_api import import_lightly

        import_lightly()
        from edge_sel.engines.ort_training import OrtTrainingEngine

        return OrtTrainingEngine(threads, spinning=spinning)
    from edge_sel.engines.ort import OrtEngine

    return OrtEngine(threads, spinning=spinning)
