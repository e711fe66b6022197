"""Import onnxruntime without torch, without telemetry, and without its remarks on a machine that it does not know.

Its native part writes to stderr while it is imported where there is no ``/sys``, or an ARM processor is new to it; it
computes as well without. An official training runtime imports torch, if that is installed, to check itself. Wheels
since 1.31 send figures about their use to Microsoft, unless a variable of the environment says no (``Privacy.md`` in
the wheel).
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType

__all__ = ["ort"]

REMARK = re.compile(rb"(Error|Warning) in cpuinfo: |.*\[W:onnxruntime:[^\]]*(cpuid_info|device_discovery)\.cc")
"""Of pytorch/cpuinfo, and of what onnxruntime makes of it."""


@contextmanager
def without_remarks() -> Iterator[None]:
    """Inside, what the process writes to its standard error is kept; afterwards all but remarks is written there."""
    with ExitStack() as opened:
        try:
            stderr = opened.enter_context(os.fdopen(os.dup(2), "wb"))
            file = opened.enter_context(tempfile.TemporaryFile())
        except OSError:  # it is closed, or no folder can be written into
            yield
            return
        with suppress(AttributeError, ValueError):
            sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)
            file.seek(0)
            stderr.writelines(line for line in file if not REMARK.match(line))


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
with without_remarks():
    import onnxruntime as ort
