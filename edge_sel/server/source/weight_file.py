"""Read a file of weights that torch wrote; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from edge_sel.errors import BadInputError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "net")
"""Keys under which training scripts put the weights beside what else they keep."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, of a ``.safetensors`` file or of a ``.pth`` file with a state dict.

    Raises:
        BadInputError: no such file, or it the file has no state dict.
    """
    if not path.is_file():
        raise BadInputError("no such file of weights", where=path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise BadInputError("not a safetensors file", where=f"{path}: {error}") from error
    except Exception as error:  # of pickle, zipfile and torch, which have nothing in common
        told = (str(error).strip() or repr(error)).splitlines()[0]
        raise BadInputError("not a file of weights alone", where=f"{path}: {told[:200]}",
                            fix="save model.state_dict(), best with safetensors") from error  # fmt: skip
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        raise BadInputError(
            "the file has no state dict", where=path, fix="save model.state_dict(), best with safetensors"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}
