"""The network of the fastest CIFAR-10 recipes: a fixed whitening layer, then three plain groups of convolutions.

After airbench94 (Jordan 2024, arXiv 2404.00498): 2×2 whitening convolution computed from training patches, convolutions
that begin as the identity, batch norm without scale, GELU, and logits scaled down by nine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

_PATCH = 2
_LOGIT_SCALE = 1 / 9


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:channels_in])  # the first channels begin as the identity
    return conv


class FastGroup(nn.Module):
    """Conv, 2×2 pool, norm, GELU, conv, norm, GELU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(channels_in, channels_out), _norm(channels_out)
        self.conv2, self.norm2 = _conv(channels_out, channels_out), _norm(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H // 2, W // 2]."""
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class FastNet(nn.Module):
    """Whitening, three groups, global maximum, linear head. Images must be at least 16 pixels wide and high.

    Args:
        widths: channels of the three groups.
        classes: number of logits.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 2 * 3 * _PATCH**2, _PATCH)
        self.whiten.weight.requires_grad_(False)
        channels, groups = self.whiten.out_channels, []
        for width in widths:
            groups.append(FastGroup(channels, width))
            channels = width
        self.groups = nn.Sequential(*groups)
        self.head = nn.Linear(channels, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        features = self.groups(F.gelu(self.whiten(x)))
        return cast(torch.Tensor, self.head(features.amax((2, 3))) * _LOGIT_SCALE)

    @torch.no_grad()
    def set_whitening(self, images: torch.Tensor, eps: float = 5e-4) -> None:
        """Make the first layer decorrelate the 2×2 patches of these images.

        Formula: rows ``± v_i / sqrt(lambda_i + eps)`` for the eigenpairs of the patches' covariance

        Args:
            images: float[N, 3, H, W], normalised; a few thousand are enough.
            eps: keeps patches without variance finite.
        """
        patches = images.float().unfold(2, _PATCH, 1).unfold(3, _PATCH, 1)
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * _PATCH**2).double()
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        rows = (vectors / (values + eps).sqrt()).T.flip(0).reshape(-1, 3, _PATCH, _PATCH)
        self.whiten.weight.copy_(torch.cat((rows, -rows)))
