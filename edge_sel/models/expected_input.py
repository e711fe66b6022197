"""Which images a published model expects."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from edge_sel.errors import SetupError, UsageError
from edge_sel.models import efficientnet_lite as lite


class ExpectedInput(NamedTuple):
    """Image size (height, width) in pixels, and the mean and standard deviation, in 0..1, to normalise by."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def expected_input(name: str) -> ExpectedInput:
    """Of ``torchvision:NAME``, ``timm:NAME`` or ``imagenet:NAME``, as its publisher says; nothing is downloaded.

    Raises:
        UsageError: the library has no such classifier, or says nothing about it.
        SetupError: the library cannot be imported.
    """
    library, _, model = name.partition(":")
    if library == "imagenet":
        return ExpectedInput(lite.IMAGE_SIZE, lite.MEAN, lite.STD)
    try:
        found = importlib.import_module(library)
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        extra = "timm" if library == "timm" else "server"
        fix = f"pip install 'edge-sel[{extra}]'"
        raise SetupError(f"{library} cannot be imported", where=error, fix=fix) from error
    return _of_timm(found, model) if library == "timm" else _of_torchvision(found.models, model)


def _of_timm(timm: Any, model: str) -> ExpectedInput:
    if not timm.is_model(model):
        raise UsageError("timm has no such model", where=model)
    config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    return ExpectedInput(tuple(config["input_size"][1:]), tuple(config["mean"]), tuple(config["std"]))


def _of_torchvision(models: Any, model: str) -> ExpectedInput:
    try:
        transforms = models.get_model_weights(model).DEFAULT.transforms()
        size, mean, std = transforms.crop_size[0], transforms.mean, transforms.std
    except (ValueError, AttributeError) as error:
        raise UsageError("torchvision has no such classifier", where=model) from error
    return ExpectedInput((size, size), tuple(mean), tuple(std))
