"""ONNX Runtime as this package uses it: a quiet import, one memory arena, tensors in place, exceptions of ours.

The import is without torch, without telemetry, and without remarks on a machine that the runtime does not know. Its
native part writes to stderr while it is imported where there is no ``/sys``, or an ARM processor is new to it; it
computes as well without. An official training runtime imports torch, if that is installed, to check itself. Wheels
since 1.31 send figures about their use to Microsoft, unless a variable of the environment says no (``Privacy.md`` in
the wheel).
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.errors import EdgeSelError, PackError, SetupError
from edge_sel.files import stderr_silenced

__all__ = ["ort"]

REMARK = re.compile(rb"(Error|Warning) in cpuinfo: |.*\[W:onnxruntime:[^\]]*(cpuid_info|device_discovery)\.cc")
"""Of pytorch/cpuinfo, and of what onnxruntime makes of it."""


def _without_torch() -> None:
    """Keep the official training runtime from importing ``onnxruntime.training``, where this is it."""
    place = importlib.util.find_spec("onnxruntime")
    for folder in (place.submodule_search_locations or []) if place else []:
        if (Path(folder) / "training" / "api").is_dir() and "onnxruntime" not in sys.modules:
            package = ModuleType("onnxruntime.training")
            package.__path__ = [str(Path(folder) / "training")]
            sys.modules["onnxruntime.training"] = package
            sys.modules["onnxruntime.training.ortmodule"] = None  # type: ignore[assignment]  # "cannot be imported"


_without_torch()
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
with stderr_silenced(REMARK):
    import onnxruntime as ort

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_GPU_FAILED = ("CUDA", "CUDNN", "CUBLAS", "CUFFT", "cuda runtime", "GPU")
"""Words of an exception that comes from a GPU, as when it has been taken away or has stopped."""
_NO_ROOM = (
    "Failed to allocate memory",
    "bad_alloc",
    "AllocateBuffer",
    "Resource temporarily unavailable",
    "out of memory",
)
"""Words of an exception that means a lack of memory; the last of a GPU."""
_IDENTITY = (
    b'\x08\t:/\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\x0b\n\x01x\x12\x06\n\x04\x08\x01\x12\x00b\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00B\x04\n\x00\x10\x12"
)
"""An ONNX model that hands a float on: IR version 9, operator set 18."""


@cache
def _load_cuda_libraries() -> None:
    """Load CUDA and cuDNN of Python packages (``onnxruntime-gpu[cuda,cudnn]``), which a session does not look for.

    What is missing the session tells.
    """
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            preload()


def providers(device: str) -> list[Any]:
    """Of a session; a GPU's session leaves to the processor what it cannot compute."""
    if device == "cpu":
        return [CPU]
    _load_cuda_libraries()
    # Its default tries every algorithm at each new size of a batch, which takes longer than a run.
    options = {"device_id": 0, "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
    return [(CUDA, options), CPU]


def run(session: ort.InferenceSession, outputs: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The named outputs."""
    with translated_errors("run"):
        values: list[np.ndarray] = session.run(outputs, dict(feeds))
    return values


@contextmanager
def translated_errors(doing: str) -> Iterator[None]:
    """Inside, onnxruntime's bare pybind exceptions become ours.

    MemoryError means that there was no room; else the graph mostly is none, or this version lacks an operator. Of a
    failed run the arena keeps what it has taken, which a smaller one may need in other pieces.
    """
    try:
        yield
    except EdgeSelError:
        raise
    except OSError as error:  # the official runtime takes its files from a temporary folder
        raise SetupError("the engine cannot write its temporary files", where=f"{gettempdir()}, {error.strerror}",
                         fix="free some room there, or set TMPDIR to another folder") from error  # fmt: skip
    except Exception as error:
        if lacks_memory(error):
            shrink_arena()
            raise MemoryError from error
        line = (str(error).splitlines() or [type(error).__name__])[0]
        if any(word in str(error) for word in _GPU_FAILED):
            raise SetupError(f"the GPU cannot {doing} a graph", where=line[:200],
                             fix="--device cpu; a run goes on with --resume") from error  # fmt: skip
        what = f"onnxruntime cannot {doing} a graph of the pack"
        if type(error).__name__ == "NotImplemented":
            fix = f"onnxruntime {ort.__version__} is installed; 1.20 or newer is needed"
            raise SetupError(what, where=line, fix=fix) from error
        raise PackError(what, where=line, fix="`edge-sel pack verify` tells more; export the pack again") from error


def lacks_memory(error: Exception) -> bool:
    """Whether that is what onnxruntime's exception, a bare pybind one, means."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_ROOM)


def shrink_arena() -> None:
    """Give back what no session uses at the moment; onnxruntime does that at the end of a run only."""
    with suppress(Exception):  # bare pybind ones: there may be no room for this either
        session, shrink = share_arena()
        session.run(None, {"x": np.zeros((), np.float32)}, shrink)


@cache
def share_arena() -> tuple[ort.InferenceSession, ort.RunOptions]:
    """One arena for all sessions of this process; returned is a session whose runs make it smaller.

    Arenas of their own keep what the largest run ever needed. This one grows in doubling regions and cuts pieces off
    them to the size that is asked for: a region that is not used yet takes no memory, and pieces that are free grow
    together again. Regions of the size of each request, which do not, take up to a quarter more (efficientnet_b0).
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    doubling = {
        "max_mem": 0,
        "arena_extend_strategy": 0,
        "initial_chunk_size_bytes": -1,
        "max_dead_bytes_per_chunk": 65_536,
    }
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(doubling))
    options, shrink = ort.SessionOptions(), ort.RunOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    # It is made now: where memory is short, there is no room for a session.
    return ort.InferenceSession(_IDENTITY, options, providers=[CPU], enable_fallback=0), shrink


class Values:
    """Named tensors that stay where a session computes.

    On the processor they are arrays that a session reads and writes in place; on a GPU, copies that stay there.

    Args:
        arrays: their first values; on the processor these very arrays are used.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, arrays: Arrays, device: str) -> None:
        self._arrays = arrays if device == "cpu" else None
        self.ort = {name: ort.OrtValue.ortvalue_from_numpy(value, device, 0) for name, value in arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """A copy."""
        value: np.ndarray = self.ort[name].numpy() if self._arrays is None else self._arrays[name].copy()
        return value

    def write(self, values: Mapping[str, np.ndarray]) -> None:
        """Replace the content of all of them."""
        for name, value in self.ort.items():
            if self._arrays is None:
                value.update_inplace(np.ascontiguousarray(values[name], np.float32))
            else:
                self._arrays[name][...] = values[name]
