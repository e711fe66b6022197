"""Two small networks without residual groups: a plain CNN and an inverted-residual net for small images."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


class SimpleCNN(nn.Module):
    """Three conv-pool groups and two linear layers, as in the adaptive-sparse-training demo."""

    def __init__(self, classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        groups = []
        channels = 3
        for width in (32, 64, 128):
            groups.append(nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)))
            channels = width
        self.features = nn.Sequential(*groups)
        self.hidden = nn.Linear(channels * (image_size[0] // 8) * (image_size[1] // 8), 256)
        self.head = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        hidden = torch.relu(self.hidden(self.features(x).flatten(1)))
        return cast(torch.Tensor, self.head(hidden))


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1 (Sandler et al. 2018)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels_out
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H/stride, W/stride]."""
        y = cast(torch.Tensor, self.layers(x))
        return x + y if self.residual else y


class SmallImageMobileNet(nn.Module):
    """MobileNetV2 blocks at the resolutions of small images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, 24, 3, 1, 1, bias=False))
        self.stem.add_module("norm", nn.BatchNorm2d(24))
        self.stem.add_module("relu", nn.ReLU6())
        shape = ((24, 24, 1), (24, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1))
        self.blocks = nn.Sequential(*(InvertedResidual(i, o, s, expansion=4) for i, o, s in shape))
        self.head = nn.Linear(96, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        features = self.blocks(self.stem(x))
        return cast(torch.Tensor, self.head(features.mean((2, 3))))
