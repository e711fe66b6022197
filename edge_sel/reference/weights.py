"""What the models begin with: ImageNet weights where they can be had, else chance; the report says which."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from edge_sel.errors import SetupError
from edge_sel.models.registry import build
from edge_sel.reference.setup import FirstWeights, Setup


def start_model(setup: Setup, classes: int, image_size: tuple[int, int], wanted: FirstWeights) -> tuple[nn.Module, str]:
    """The model of a setup, and a word for its first weights.

    Raises:
        SetupError: ImageNet weights were asked for and cannot be had.
        UsageError: unknown model.
    """
    if wanted == "random" or (wanted == "auto" and not setup.imagenet):
        return build(setup.model, classes, image_size), "random"
    try:
        if setup.model != "resnet18-cifar":
            return build(setup.model, classes, image_size, pretrained=True), "ImageNet"
        model = build(setup.model, classes, image_size)
        left = take_torchvision_resnet18(model, _imagenet_resnet18())
        return model, f"ImageNet, but {' and '.join(left)} at random"
    except Exception as error:  # no torchvision, no network, a mirror that sends something else
        if wanted == "imagenet":
            raise SetupError("ImageNet weights are not available", where=error, fix="leave out --weights") from error
        return build(setup.model, classes, image_size), f"random (ImageNet weights are not available: {_short(error)})"


def take_torchvision_resnet18(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Copy torchvision's ResNet-18 weights into ours; the names of the layers they do not fit: stem and head."""
    translated = {}
    for name, value in weights.items():
        name = re.sub(r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.", name)
        name = name.replace("downsample", "shortcut").replace(".bn", ".norm")
        name = re.sub(r"^conv1\.", "stem.conv.", re.sub(r"^bn1\.", "stem.norm.", name))
        translated[re.sub(r"^fc\.", "head.", name)] = value
    own = model.state_dict()
    fitting = {name: value for name, value in translated.items() if name in own and value.shape == own[name].shape}
    model.load_state_dict(fitting, strict=False)
    missing = {name.rpartition(".")[0] for name in own if name not in fitting}
    return sorted(missing)


def _imagenet_resnet18() -> Mapping[str, torch.Tensor]:
    from torchvision.models import ResNet18_Weights

    found: Mapping[str, torch.Tensor] = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    return found


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
