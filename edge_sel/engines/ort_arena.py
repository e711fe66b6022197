"""The memory that ONNX Runtime computes in: one arena for all sessions of this process."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import numpy as np

from edge_sel.engines.native import ort

_NO_ROOM = (
    "Failed to allocate memory",
    "bad_alloc",
    "AllocateBuffer",
    "Resource temporarily unavailable",
    "out of memory",
)  # the last of a GPU
_IDENTITY = (
    b'\x08\t:/\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\x0b\n\x01x\x12\x06\n\x04\x08\x01\x12\x00b\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00B\x04\n\x00\x10\x12"
)
"""An ONNX model that hands a float on: IR version 9, operator set 18."""


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
    return ort.InferenceSession(_IDENTITY, options, providers=["CPUExecutionProvider"], enable_fallback=0), shrink
