"""The warmup checkpoint: one safetensors file whose header says which model it is. No pickle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import nn

from edge_sel.errors import BadInputError
from edge_sel.files import write_durably
from edge_sel.models.registry import build
from edge_sel.schema import parse_json
from edge_sel.server.source.base import WarmupInfo

FORMAT = "edge-sel-warmup-1"


def save(path: Path, model: nn.Module, info: WarmupInfo) -> None:
    """Write the checkpoint; a save that fails or is killed leaves the old file whole.

    Raises:
        SetupError: the disk is full or the place cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_durably(path, save_tensors(tensors, metadata={"format": FORMAT, "info": json.dumps(asdict(info))}))


def load(path: Path) -> tuple[nn.Module, WarmupInfo]:
    """Build the model that the checkpoint names and fill in its weights.

    Raises:
        BadInputError: not a warmup checkpoint, or its weights do not fit its model.
    """
    if not path.is_file():
        raise BadInputError("no such checkpoint", where=path, fix="make one with `edge-sel pretrain`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInputError("not a safetensors file", where=f"{path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise BadInputError("not an edge-sel warmup checkpoint", where=path)
    try:
        info = _info(parse_json(metadata["info"], finite=False))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadInputError("the checkpoint's header cannot be read", where=f"{path}: {error!r}") from error
    model = build(info.model, len(info.classes), info.image_size)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadInputError("weights do not fit the model", where=f"{path} ({info.model})") from error
    return model.eval(), info


def _info(raw: dict[str, Any]) -> WarmupInfo:
    height, width = raw["image_size"]
    return WarmupInfo(
        model=str(raw["model"]),
        classes=tuple(str(name) for name in raw["classes"]),
        image_size=(int(height), int(width)),
        mean=tuple(float(value) for value in raw["mean"]),
        std=tuple(float(value) for value in raw["std"]),
        training=dict(raw["training"]),
        held_out=tuple(str(name) for name in raw.get("held_out", ())),
    )
