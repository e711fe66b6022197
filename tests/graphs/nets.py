"""Networks unlike the built-in ones, of the parts that common classifiers are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class SelfAttention(nn.Module):
    """Multi-head attention from one joint projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.joint = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        parts = self.joint(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, gelu: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(approximate=gelu), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallTransformer(nn.Module):
    """Patchify, position embedding, three blocks, mean over tokens, linear head."""

    def __init__(self, classes: int = 5, width: int = 12) -> None:
        super().__init__()
        self.patchify = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Embedding(16, width)
        self.blocks = nn.Sequential(*(Block(width, 3, gelu) for gelu in ("none", "tanh", "none")))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patchify(x).flatten(2).transpose(1, 2) + self.position.weight
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.expand = nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.expand(F.silu(self.reduce(scale))))


class ConvNextBlock(nn.Module):
    """Depthwise 5×5, group norm, pointwise MLP with GELU, layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.GroupNorm(2, channels)
        self.wide = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, channels, 1)
        self.scale = nn.Parameter(0.5 * torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x)))))


class ShuffleBlock(nn.Module):
    """Half of the channels pass, half are convolved in groups; then the two halves are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Conv2d(half, half, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, changed = x.chunk(2, 1)
        y = torch.cat([kept, F.hardswish(self.norm(self.conv(changed)))], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class PartsNet(nn.Module):
    """Squeeze-and-excite, group norm, channel shuffle, concatenated pools, padding, leaky and clipped activations."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.excite = SqueezeExcite(8)
        self.next = ConvNextBlock(8)
        self.shuffle = ShuffleBlock(16)
        self.slope = nn.PReLU(16)
        self.last = nn.Conv2d(16, 16, 3, stride=2)
        self.hidden = nn.Linear(64, 24)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.stem(F.pad(x, (0, 1, 0, 1))), 0.1)
        x = self.next(self.excite(x))
        x = torch.cat([F.avg_pool2d(x, 2), F.max_pool2d(x, 2)], 1)
        x = self.slope(self.shuffle(x))
        x = F.elu(self.last(F.pad(x, (1, 1, 1, 1)))).flatten(1)
        return self.head(self.drop(F.softplus(self.hidden(x))))


class PooledHead(nn.Module):
    """As SqueezeNet: a 1×1 convolution, ReLU and a mean make the logits; nothing is normalised."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.wide = nn.ModuleList((nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, padding=1)))
        self.deep = nn.Conv2d(12, 10, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(10, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.deep(torch.cat([torch.relu(conv(x)) for conv in self.wide], 1)))
        return F.adaptive_avg_pool2d(torch.relu(self.classifier(x)), 1).flatten(1)


class TwoHeads(nn.Module):
    """As LeViT and RepViT: the mean of two linear layers, each behind a normalisation of its own."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm1d(12) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(12, classes) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.body(torch.relu(self.norm(self.stem(x))))).mean((2, 3))
        first, second = (head(norm(x)) for head, norm in zip(self.heads, self.norms, strict=True))
        return (first + second) / 2


class Moved(nn.Module):
    """Windows that are rolled (Swin), tokens merged by steps, a global response (ConvNeXt V2), a part written over
    (GhostNet), a map resized (MobileViT), and biases looked up in a table."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.table = nn.Parameter(torch.randn(9, 8))
        self.register_buffer("places", torch.arange(64) % 9)
        self.gain = nn.Parameter(torch.full((1, 8, 1, 1), 0.3))
        self.merge = nn.Linear(32, 12, bias=False)
        self.norm = nn.LayerNorm(12)
        self.mix = nn.Conv2d(12, 6, 3, padding=1)
        self.head = nn.Linear(12, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + torch.roll(x, (-3, 2), (2, 3)) + self.table[self.places].T.reshape(1, 8, 8, 8)
        norm = x.norm(dim=(2, 3), keepdim=True)
        x = x + self.gain * x * norm / (norm.mean(1, keepdim=True) + 1e-6)
        parts = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        x = self.norm(self.merge(torch.cat(parts, 1).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = F.interpolate(F.interpolate(x, size=(6, 6), mode="bilinear"), size=(4, 4), mode="bilinear")
        y = torch.cat([x.clone(), x * 0.5], 1)
        y[:, :12] = torch.cat([self.mix(x)] * 2, 1)
        return self.head(y[:, :12].mean((2, 3)) + y[:, 12:].mean((2, 3)))


class Masked(nn.Module):
    """Patches that leave a border out, batch normalisation over tokens (LeViT), a mask of constants (Swin), and dropout
    that is not a layer (GhostNet)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.patchify = nn.Conv2d(3, 12, 3, 3)
        self.joint = nn.Linear(12, 32, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.out = nn.Linear(16, 12)
        self.head = nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patchify(x).flatten(2).transpose(1, 2)
        n, tokens, _ = x.shape
        joint = self.joint(x)
        joint = self.norm(joint.flatten(0, 1)).reshape_as(joint)
        q, k, v = joint.view(n, tokens, 4, -1).split([2, 2, 4], dim=3)
        region = x.new_zeros((5, 5))
        for number, rows in enumerate((slice(0, -2), slice(-2, -1), slice(-1, None))):
            region[rows, 1:] = number
        apart = region.flatten()[:, None] != region.flatten()[None]
        score = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + x.new_zeros((25, 25)).masked_fill(apart, -5.0)
        mixed = (score.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).reshape(n, tokens, 16)
        return self.head(F.dropout((x + self.out(mixed)).mean(1), 0.5, self.training))


class Inverted(nn.Module):
    """Inverted residuals as in EfficientNet: SiLU, a depthwise convolution, squeeze-and-excite, a shortcut."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (8, 24, 24, 8))
        self.widen = nn.Conv2d(8, 24, 1, bias=False)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.excite = SqueezeExcite(24)
        self.narrow = nn.Conv2d(24, 8, 1, bias=False)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.norms[0](self.stem(x)))
        y = F.silu(self.norms[1](self.widen(x)))
        y = self.excite(F.hardswish(self.norms[2](self.depthwise(y))))
        return self.head((x + self.norms[3](self.narrow(y))).mean((2, 3)))
