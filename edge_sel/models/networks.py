"""The networks for small images that are trained here: residual, plain and inverted-residual ones, and a fast one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

_PATCH = 2
_LOGIT_SCALE = 1 / 9


def _stem(width: int, activation: nn.Module) -> nn.Sequential:
    conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(width), relu=activation))


def _groups(
    block: Callable[[int, int, int], nn.Module], channels: int, widths: Sequence[int], blocks: int
) -> nn.Sequential:
    """One group of blocks per width; each later group halves the map."""
    groups = []
    for group, width in enumerate(widths):
        layers = []
        for number in range(blocks):
            layers.append(block(channels, width, 2 if group > 0 and number == 0 else 1))
            channels = width
        groups.append(nn.Sequential(*layers))
    return nn.Sequential(*groups)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: ``relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))``."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H/stride, W/stride]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallImageResNet(nn.Module):
    """A residual network for small images (He et al. 2016, section 4.2), with a wide first stage and a linear head.

    A 3×3 stem without pooling, then one group of basic blocks per width; each later group halves the map.

    Args:
        widths: channels of each group.
        blocks: basic blocks per group.
        classes: number of logits.
    """

    def __init__(self, widths: Sequence[int], blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = _stem(widths[0], nn.ReLU())
        self.stages = _groups(BasicBlock, widths[0], widths, blocks)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        features = self.stages(self.stem(x))
        return self.head(features.mean((2, 3)))


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
        return y + shortcut


class WideResNet(nn.Module):
    """WRN-``depth``-``width`` without dropout (Zagoruyko & Komodakis 2016), as the DIHCL paper trains it.

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
        widths = (16 * width, 32 * width, 64 * width)
        self.groups = _groups(WideBlock, 16, widths, blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        features = torch.relu(self.norm(self.groups(self.stem(x))))
        return self.head(features.mean((2, 3)))


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
        return self.head(hidden)


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
        y = self.layers(x)
        return x + y if self.residual else y


class SmallImageMobileNet(nn.Module):
    """MobileNetV2 blocks at the resolutions of small images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = _stem(24, nn.ReLU6())
        shape = ((24, 24, 1), (24, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1))
        self.blocks = nn.Sequential(*(InvertedResidual(i, o, s, expansion=4) for i, o, s in shape))
        self.head = nn.Linear(96, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        features = self.blocks(self.stem(x))
        return self.head(features.mean((2, 3)))


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
    """The network of the fastest CIFAR-10 recipes, after airbench94 (Jordan 2024, arXiv 2404.00498).

    A fixed 2×2 whitening convolution computed from training patches, three plain groups of convolutions that begin as
    the identity, batch norm without scale, GELU, global maximum, linear head, and logits scaled down by nine. Images
    must be at least 16 pixels wide and high.

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
        # Not amax: its gradient looks for numbers equal to the largest, of which compiled code in bfloat16 finds none.
        return self.head(F.adaptive_max_pool2d(features, 1).flatten(1)) * _LOGIT_SCALE

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
