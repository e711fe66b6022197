"""Import the registry's torchvision beside a CPU build of torch, for which it has no compiled operators.

Importing it fails there ("operator torchvision::nms does not exist"). These operators are of object detection; no
classifier calls one, so here they are only declared. The CUDA build of torch would add 370 MB to a process.
"""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

_declared: list[Any] = []


def import_torchvision() -> None:
    """Import it if it is installed; do nothing otherwise."""
    import torch

    for _ in range(50):
        try:
            importlib.import_module("torchvision")
            return
        except ImportError:
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
        if not _declared:
            _declared.append(torch.library.Library("torchvision", "DEF"))
        _declared[0].define(f"{missing[1]}(Tensor a) -> Tensor")
        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
