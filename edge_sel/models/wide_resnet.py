"""Wide residual networks for small images (Zagoruyko & Komodakis 2016), as the DIHCL paper trains them."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


class WideBlock(nn.Module):
    """Pre-activation: ``conv(relu(bn(conv(relu(bn(x)))))) + shortcut``; the shortcut of a wider block is a 1×1 conv."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.widens = stride != 1 or channels_in != channels_out
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if self.widens else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H/stride, W/stride]."""
        y = torch.relu(self.norm1(x))
        shortcut = self.shortcut(y) if self.widens else x
        y = self.conv2(torch.relu(self.norm2(self.conv1(y))))
        return cast(torch.Tensor, y + shortcut)


class WideResNet(nn.Module):
    """WRN-``depth``-``width`` without dropout.

    Args:
        depth: 6 n + 4; 28 has n = 4 blocks per group.
        width: the groups have 16, 32 and 64 times this many channels.
        classes: number of logits.
    """

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"the depth of a wide ResNet is 6 n + 4, not {depth}")
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        groups, channels = [], 16
        for group in range(3):
            wide = 16 * width * 2**group
            layers = []
            for block in range(blocks):
                layers.append(WideBlock(channels, wide, 2 if group and not block else 1))
                channels = wide
            groups.append(nn.Sequential(*layers))
        self.groups = nn.Sequential(*groups)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        features = torch.relu(self.norm(self.groups(self.stem(x))))
        return cast(torch.Tensor, self.head(features.mean((2, 3))))
