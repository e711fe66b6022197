"""Which images a published model expects."""

from __future__ import annotations

from typing import NamedTuple

from edge_sel.errors import UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ExpectedInput(NamedTuple):
    """Image size (height, width) in pixels, and the mean and standard deviation, in 0..1, to normalise by."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def expected_input(name: str) -> ExpectedInput:
    """Of ``torchvision:NAME`` or ``timm:NAME``, as its publisher says; nothing is downloaded.

    Raises:
        UsageError: the library has no such classifier, or says nothing about it.
    """
    library, _, model = name.partition(":")
    if library == "timm":
        import timm

        if not timm.is_model(model):
            raise UsageError("timm has no such model", where=model)
        config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
        return ExpectedInput(tuple(config["input_size"][1:]), tuple(config["mean"]), tuple(config["std"]))
    from torchvision import models

    try:
        transforms = models.get_model_weights(model).DEFAULT.transforms()
        size, mean, std = transforms.crop_size[0], transforms.mean, transforms.std
    except (ValueError, AttributeError) as error:
        raise UsageError("torchvision has no such classifier", where=model) from error
    return ExpectedInput((size, size), tuple(mean), tuple(std))
