"""Calls of ONNX Runtime whose bare exceptions become ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import gettempdir

import numpy as np

from edge_sel.engines.native import ort
from edge_sel.engines.ort_arena import lacks_memory, shrink_arena
from edge_sel.engines.ort_device import gpu_failed
from edge_sel.errors import EdgeSelError, PackError, SetupError


def run(session: ort.InferenceSession, outputs: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The named outputs."""
    with told("run"):
        values: list[np.ndarray] = session.run(outputs, dict(feeds))
    return values


@contextmanager
def told(doing: str) -> Iterator[None]:
    """onnxruntime raises bare pybind exceptions: MemoryError where there was no room, else the graph is not as it was.

    Of a failed run the arena keeps what it has taken, which a smaller one may need in other pieces.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, EdgeSelError):
            raise
        if isinstance(error, OSError):  # the official runtime takes its files from a temporary folder
            raise SetupError("the engine cannot write its temporary files", where=f"{gettempdir()}, {error.strerror}",
                             fix="free some room there, or set TMPDIR to another folder") from error  # fmt: skip
        if lacks_memory(error):
            shrink_arena()
            raise MemoryError from error
        if gpu_failed(error):
            lines = str(error).splitlines()
            raise SetupError(f"the GPU cannot {doing} a graph", where=lines[0][:200],
                             fix="--device cpu; a run goes on with --resume") from error  # fmt: skip
        raise _refusal(f"onnxruntime cannot {doing} a graph of the pack", error) from error


def _refusal(what: str, error: Exception) -> EdgeSelError:
    """What onnxruntime's exceptions mean: mostly that the graph is none, or that this version lacks an operator."""
    lines = str(error).splitlines() or [type(error).__name__]
    if type(error).__name__ == "NotImplemented":
        fix = f"onnxruntime {ort.__version__} is installed; 1.20 or newer is needed"
        return SetupError(what, where=lines[0], fix=fix)
    return PackError(what, where=lines[0], fix="`edge-sel pack verify` tells more; export the pack again")
