"""The machine that a run was made on."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch

from edge_sel.reference import parallel
from edge_sel.version import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures depend on besides the settings."""
    found: dict[str, Any] = {
        "edge_sel": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "processes": parallel.world(),
        "device": str(device),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if device.type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
