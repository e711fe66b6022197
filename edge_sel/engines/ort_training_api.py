"""Find and import onnxruntime-training, which owns the same folder as onnxruntime and must be there alone."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from types import ModuleType

from edge_sel.errors import SetupError

VERSION = "1.19.2"
"""The last one; there are wheels of it for Linux on x86_64, CPython 3.8 to 3.11."""
OWNERS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn",
          "onnxruntime-training")  # fmt: skip
"""Distributions whose files are in the folder ``onnxruntime``."""
FIX = "pip uninstall -y {} && pip install --no-deps onnxruntime-training==" + VERSION


def owners() -> dict[str, str]:
    """Which of ``OWNERS`` are installed, with their versions."""
    found = {}
    for name in OWNERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def require_training() -> None:
    """SetupError unless onnxruntime-training is installed, alone, and in the version that artifacts are for."""
    found = owners()
    version = found.get("onnxruntime-training")
    if version is None:
        raise SetupError("the ort-training engine needs onnxruntime-training, in an environment of its own",
                         fix="docs/howto/engines.md says how, or --engine ort")  # fmt: skip
    fix = FIX.format(" ".join(found))
    if len(found) > 1:
        versions = " and ".join(f"{name} {version}" for name, version in found.items())
        raise SetupError("two runtimes are installed over each other", where=versions, fix=fix)
    if version != VERSION:
        raise SetupError(f"onnxruntime-training {version} is installed, {VERSION} is needed", fix=fix)


def import_api() -> ModuleType:
    """``onnxruntime.training.api``: what a device needs, without torch and onnx.

    The runtime's own check of the installation would import these, unless ``native`` is imported before it.

    Raises:
        SetupError: see ``require_training``.
    """
    require_training()
    from edge_sel.engines.native import ort

    ort.set_default_logger_severity(4)  # errors are raised; told once is enough
    return importlib.import_module("onnxruntime.training.api")


def import_training() -> ModuleType:
    """``onnxruntime.training`` with ``artifacts`` and ``onnxblock``, for a server that makes artifacts.

    Raises:
        SetupError: see ``require_training``.
    """
    import_api()
    package = sys.modules["onnxruntime.training"]
    for part in ("onnxblock", "artifacts"):
        setattr(package, part, importlib.import_module(f"onnxruntime.training.{part}"))
    return package
