"""A classifier that a function in a user's Python file makes."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from edge_sel.errors import BadInputError
from edge_sel.models.registry import prepare
from edge_sel.server.source.base import Source, WarmupInfo
from edge_sel.server.source.torch_model import from_module, from_weights

if TYPE_CHECKING:
    from edge_sel.server.source.open import Asked

_NAMES = ("classes", "num_classes")
"""Parameters by which a factory may be told the number of classes."""


def from_factory(path: Path, function: str, info: WarmupInfo, asked: Asked) -> Source:
    """The model that the function returns, with the weights that it has, or with those of a file.

    The function may have a parameter ``classes`` or ``num_classes``; else it always makes the same number of logits.

    Raises:
        BadInputError: no such file or function, it fails, or it makes no classifier.
        UsageError: the model has another number of logits than there are classes.
    """
    make = _function(path, function)
    told = next((name for name in _NAMES if name in inspect.signature(make).parameters), None)
    where = f"{path}:{function}"

    def build(name: str, classes: int, image_size: tuple[int, int]) -> nn.Module:
        return _call(make, {told: classes} if told else {}, where)

    if asked.weights is not None:
        if told is None:
            raise BadInputError("the function takes no number of classes", where=where,
                                fix="give it a parameter `classes`, or load the weights in it")  # fmt: skip
        return from_weights(build, info, asked)
    wanted = asked.names
    model = _call(make, {told: len(wanted)} if told and wanted else {}, where)
    logits = _logits(model, info.image_size, where)
    names, new_head = asked.class_names(logits, where)
    if len(names) != logits:
        raise BadInputError("the function takes no number of classes", where=where,
                            fix="give it a parameter `classes`; a new head needs one")  # fmt: skip
    return from_module(model, replace(info, classes=names), new_head=new_head, build=build)


def _function(path: Path, name: str) -> Callable[..., object]:
    if not path.is_file():
        raise BadInputError("no such file", where=path)
    spec = importlib.util.spec_from_file_location(f"edge_sel_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))  # it may import what stands beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        raise BadInputError("the file cannot be imported", where=f"{path}: {error!r}"[:300]) from error
    finally:
        sys.path.pop(0)
    made = getattr(module, name, None)
    if not callable(made):
        raise BadInputError(f"the file has no function {name}", where=path)
    return made  # type: ignore[no-any-return]


def _call(make: Callable[..., object], given: dict[str, int], where: str) -> nn.Module:
    try:
        model = make(**given)
    except Exception as error:  # whatever a user's function may raise
        raise BadInputError("the function fails", where=f"{where}: {error!r}"[:300]) from error
    if not isinstance(model, nn.Module):
        raise BadInputError(f"the function returns {type(model).__name__}, not a torch module", where=where)
    return prepare(model).eval()


def _logits(model: nn.Module, image_size: tuple[int, int], where: str) -> int:
    try:
        with torch.inference_mode():
            found = model(torch.zeros(2, 3, *image_size))
    except Exception as error:  # whatever a user's model may raise
        told = (str(error).strip() or repr(error)).splitlines()[0]
        raise BadInputError(f"the model fails on images of {image_size[0]}×{image_size[1]}", where=f"{where}: {told}",
                            fix="give the size that it was made for with --image-size") from error  # fmt: skip
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise BadInputError(f"the model returns {what} for two images, not logits [2, classes]", where=where)
    return int(found.shape[1])
