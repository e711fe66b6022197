"""A dozen ways to end a network, each behind the same small body, as published and homemade classifiers do."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

SIZE, WIDTH = 16, 12


class Ended(nn.Module):
    """A body with batch statistics that makes maps [N, 12, 4, 4], and an ending."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(),
        )  # fmt: skip
        self.classifier = self.make_classifier(classes)

    def make_classifier(self, classes: int) -> nn.Module:
        return nn.Linear(WIDTH, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.body(x))

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x, 1)

    def end(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Flatten(Ended):
    """As torchvision's ResNets."""

    def end(self, x):
        return self.classifier(torch.flatten(self.pooled(x), 1))


class FlattenModule(Ended):
    """As timm's, with dropout."""

    def make_classifier(self, classes):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(WIDTH, classes))

    def end(self, x):
        return self.classifier(self.pooled(x))


class View(Ended):
    def end(self, x):
        return self.classifier(self.pooled(x).view(len(x), -1))


class ViewDropout(Ended):
    def end(self, x):
        x = self.pooled(x)
        return self.classifier(F.dropout(x.view(x.size(0), -1), 0.5, self.training))


class Reshape(Ended):
    def end(self, x):
        x = self.pooled(x)
        return self.classifier(x.reshape(x.shape[0], x.shape[1]))


class Squeeze(Ended):
    def end(self, x):
        return self.classifier(self.pooled(x).squeeze(-1).squeeze(-1))


class Mean(Ended):
    def end(self, x):
        return self.classifier(x.mean((2, 3)))


class WholeMap(Ended):
    """The map itself, flattened: a feature for each of its places."""

    def make_classifier(self, classes):
        return nn.Linear(WIDTH * 16, classes)

    def end(self, x):
        return self.classifier(x.flatten(1))


class Hidden(Ended):
    """A layer before the head, as in MobileNet V3."""

    def make_classifier(self, classes):
        return nn.Sequential(nn.Linear(WIDTH, 24), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(24, classes))

    def end(self, x):
        return self.classifier(self.pooled(x).flatten(1))


class ConvHead(Ended):
    """A 1×1 convolution of one pixel."""

    def make_classifier(self, classes):
        return nn.Conv2d(WIDTH, classes, 1)

    def end(self, x):
        return self.classifier(self.pooled(x)).flatten(1)


class ConvThenPool(ConvHead):
    """A 1×1 convolution of the map, whose logits are averaged."""

    def end(self, x):
        return self.pooled(self.classifier(x)).flatten(1)


class ConvReluPool(ConvHead):
    """As SqueezeNet: nothing linear makes its logits, so only a new head has a closed form."""

    def make_classifier(self, classes):
        return nn.Sequential(nn.Dropout(0.5), nn.Conv2d(WIDTH, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)))

    def end(self, x):
        return torch.flatten(self.classifier(x), 1)


class TwoHeads(Ended):
    """As LeViT: each with a normalisation of its own, averaged."""

    def make_classifier(self, classes):
        return nn.ModuleList(nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, classes)) for _ in range(2))

    def end(self, x):
        x = x.mean((2, 3))
        return (self.classifier[0](x) + self.classifier[1](x)) / 2


class ClassToken(Ended):
    """As ViT: the first of several tokens, normalised."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.token = nn.Parameter(0.02 * torch.ones(1, 1, WIDTH))
        self.mix = nn.Linear(17, 17)
        self.norm = nn.LayerNorm(WIDTH)

    def end(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        return self.classifier(self.norm(x)[:, 0])


class MeanOfTokens(Ended):
    """As Swin."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.norm = nn.LayerNorm(WIDTH)

    def end(self, x):
        return self.classifier(self.norm(x.flatten(2).transpose(1, 2)).mean(1))


class NormBeforeHead(Ended):
    """As ConvNeXt."""

    def make_classifier(self, classes):
        return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes))

    def end(self, x):
        return self.classifier(self.pooled(x).flatten(1))


class ProductAndSum(Ended):
    """Weight [F, C] and bias, as Keras has them."""

    def make_classifier(self, classes):
        return nn.ParameterDict({"weight": 0.1 * torch.randn(WIDTH, classes), "bias": torch.zeros(classes)})

    def end(self, x):
        return x.mean((2, 3)) @ self.classifier["weight"] + self.classifier["bias"]


ENDINGS = {ending.__name__: ending for ending in (
    Flatten, FlattenModule, View, ViewDropout, Reshape, Squeeze, Mean, WholeMap, Hidden, ConvHead, ConvThenPool,
    ConvReluPool, TwoHeads, ClassToken, MeanOfTokens, NormBeforeHead, ProductAndSum,
)}  # fmt: skip


def settled(name: str, classes: int) -> nn.Module:
    """The network with running statistics of some noise."""
    torch.manual_seed(0)
    model = ENDINGS[name](classes).train()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(16, 3, SIZE, SIZE))
    return model.eval()


def onnx_file(path: Path, name: str, classes: int, opset: int, *, dynamo: bool) -> Path:
    """What one of torch's two exporters writes."""
    shown = (torch.zeros(2, 3, SIZE, SIZE),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            axes = ({0: torch.export.Dim("n")},)
            torch.onnx.export(settled(name, classes), shown, str(path), dynamo=True, opset_version=opset,
                              dynamic_shapes=axes, verbose=False, external_data=False)  # fmt: skip
        else:
            torch.onnx.export(settled(name, classes), (shown[0][:1],), str(path), dynamo=False, opset_version=opset,
                              input_names=["images"], dynamic_axes={"images": {0: "n"}})  # fmt: skip
    return path
