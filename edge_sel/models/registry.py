"""Models by name, and which images they expect: those defined here, and any torchvision or timm classifier.

``build("resnet-c", classes=10, image_size=(32, 32))``; ``build("torchvision:mobilenet_v3_small", …)``;
``build("timm:mobilenetv3_small_100", …)``; ``build("imagenet:efficientnet-lite0", …)``.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from edge_sel.errors import SetupError, UsageError
from edge_sel.models import efficientnet_lite as lite
from edge_sel.models.networks import FastNet, SimpleCNN, SmallImageMobileNet, SmallImageResNet, WideResNet

TIMM = "timm:"
"""What the name of a model of timm begins with."""
LINEAR = "+linear"
"""What a name ends in whose network has no ReLU behind its head, as its publisher's has."""
IMAGENET = "imagenet:"
"""What the name of a model begins with whose published weights are in a package, not behind a network."""

_PATH_DROPS = {"StochasticDepth": "p", "DropPath": "drop_prob", "DropBlock2d": "drop_prob"}
"""Layers of torchvision and timm that leave out whole paths, and the attribute that says how often."""
_AUXILIARY = ("aux1", "aux2", "AuxLogits", "aux_classifier", "aux_head")

MakeModel = Callable[[int, tuple[int, int]], nn.Module]

MODELS: dict[str, MakeModel] = {
    "resnet-c": lambda classes, size: SmallImageResNet((32, 64, 128), 2, classes),
    "resnet-c-small": lambda classes, size: SmallImageResNet((16, 32, 64), 1, classes),
    "resnet18-cifar": lambda classes, size: SmallImageResNet((64, 128, 256, 512), 2, classes),
    "mobilenet-c": lambda classes, size: SmallImageMobileNet(classes),
    "simple-cnn": SimpleCNN,
}
"""What a device fine-tunes: each can be exported to a pack."""

REFERENCE_MODELS: dict[str, MakeModel] = {
    "wrn-28-10": lambda classes, size: WideResNet(28, 10, classes),
    "fast-net": lambda classes, size: FastNet((64, 256, 256), classes),
    "fast-net-small": lambda classes, size: FastNet((24, 32, 32), classes),
}
"""What `edge-sel reference` trains besides; no pack is made of them."""


def build(name: str, classes: int, image_size: tuple[int, int], *, pretrained: bool = False) -> nn.Module:
    """Build a classifier with ``classes`` logits for images of ``image_size`` (height, width).

    Raises:
        UsageError: the name is unknown, or pretrained weights were asked of a model that has none.
        SetupError: torchvision or timm is needed and cannot be imported.
    """
    if name.endswith(LINEAR):
        return take_away_last_relu(build(name.removesuffix(LINEAR), classes, image_size, pretrained=pretrained))
    library, _, model_name = name.rpartition(":")
    if library in _BUILDERS:
        return _BUILDERS[library](model_name, classes, image_size, pretrained)
    known = {**MODELS, **REFERENCE_MODELS}
    if library or name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        choice = ", ".join((*known, "torchvision:NAME", "timm:NAME", f"{IMAGENET}{lite.NAME}"))
        hint = f"did you mean {near[0]}?" if near else f"one of {choice}"
        raise UsageError("unknown model", where=name, fix=hint)
    if pretrained:
        raise UsageError("no pretrained weights exist for this model", where=name, fix="use torchvision:NAME")
    return known[name](classes, image_size)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters())


def _torchvision(name: str, classes: int, image_size: tuple[int, int], pretrained: bool) -> nn.Module:
    models = _library("torchvision", "server").models
    if name not in models.list_models(module=models):
        raise UsageError("torchvision has no such classifier", where=name)
    given: dict[str, Any] = {"image_size": image_size[0]} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        given["init_weights"] = False  # slow, and warned about
    model = models.get_model(name, weights=None, num_classes=classes, **given)
    if pretrained:
        _fill_all_but_head(model, models.get_model(name, weights="DEFAULT").state_dict())
    return prepare(model)


def _imagenet(name: str, classes: int, image_size: tuple[int, int], pretrained: bool) -> nn.Module:
    if name != lite.NAME:
        raise UsageError("no package has a network of this name", where=name, fix=f"{IMAGENET}{lite.NAME}")
    model = lite.EfficientNetLite0(classes, image_size)
    if pretrained:
        _fill_all_but_head(model, lite.published_weights())
    return model


def _fill_all_but_head(model: nn.Module, published: Mapping[str, Any]) -> None:
    """Load published weights; of the head, which has other classes, none fits."""
    own = model.state_dict()
    own.update({name: value for name, value in published.items() if name in own and own[name].shape == value.shape})
    model.load_state_dict(own)


def _timm(name: str, classes: int, image_size: tuple[int, int], pretrained: bool) -> nn.Module:
    timm = _timm_having(name)
    published = timm.get_pretrained_cfg(name)
    # Transformers and mixers are made for one size; others take any, and have no such option.
    given = {"img_size": image_size} if published is not None and published.fixed_input_size else {}
    return prepare(timm.create_model(name, pretrained=pretrained, num_classes=classes, **given))


_BUILDERS = {"torchvision": _torchvision, "imagenet": _imagenet, "timm": _timm}


class Backbone(NamedTuple):
    """A pretrained network without its head.

    Attributes:
        model: images [N, 3, H, W] to features [N, F].
        image_size: (height, width) in pixels that it was trained for.
        mean: [3], in 0..1, to normalise by.
        std: [3], likewise.
    """

    model: nn.Module
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def timm_backbone(name: str) -> Backbone:
    """A model of timm with its pretrained weights, from the hub's cache or downloaded.

    Raises:
        UsageError: timm has no such model.
        SetupError: timm cannot be imported, or the weights cannot be had.
    """
    timm = _timm_having(name)
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # of timm, the hub, the network and the files: they have nothing in common
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        what, fix = (
            f"no pretrained weights of timm:{name}",
            "load them once with a network; a cache is used from then on",
        )
        raise SetupError(what, where=reason, fix=fix) from error
    expected = timm.data.resolve_model_data_config(model)
    _, height, width = expected["input_size"]
    return Backbone(model, (height, width), tuple(expected["mean"]), tuple(expected["std"]))


def _timm_having(name: str) -> Any:
    """The module timm, which has a model of this name."""
    timm = _library("timm", "timm")
    if not timm.is_model(name):
        raise UsageError("timm has no such model", where=name)
    return timm


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise SetupError(f"{name} cannot be imported", where=error, fix=f"pip install 'edge-sel[{extra}]'") from error


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
    if library == "timm":
        timm = _timm_having(model)
        config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
        return ExpectedInput(tuple(config["input_size"][1:]), tuple(config["mean"]), tuple(config["std"]))
    models = _library("torchvision", "server").models
    try:
        transforms = models.get_model_weights(model).DEFAULT.transforms()
        size, mean, std = transforms.crop_size[0], transforms.mean, transforms.std
    except (ValueError, AttributeError) as error:
        raise UsageError("torchvision has no such classifier", where=model) from error
    return ExpectedInput((size, size), tuple(mean), tuple(std))


def prepare(model: nn.Module) -> nn.Module:
    """The same network, changed in place.

    - Dropout and stochastic depth are off: a compiled step has no random numbers, and a repeated one is the same.
    - Auxiliary classifiers, which help only a training from scratch, are taken away.
    - A last linear layer without bias gets one of zeros, which a closed form and new classes need.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        drop = _PATH_DROPS.get(type(module).__name__)
        if drop is not None:
            setattr(module, drop, 0.0)
    if getattr(model, "aux_logits", False):
        model.aux_logits = False
        for name in _AUXILIARY:
            if hasattr(model, name):
                setattr(model, name, None)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if linear and linear[-1].bias is None:
        linear[-1].bias = nn.Parameter(torch.zeros(linear[-1].out_features))
    return model


def take_away_last_relu(model: nn.Module) -> nn.Module:
    """Replace the last ReLU by nothing: in such networks as SqueezeNet it stands behind the head. In place."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    if names:
        parent, _, last = names[-1].rpartition(".")
        setattr(model.get_submodule(parent), last, nn.Identity())
    return model
