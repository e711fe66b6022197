"""A warmup checkpoint of a randomly initialised model, images for it, and its forward graph, made once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from edge_sel.data.dataset import ImageSet

NOW = datetime(2024, 1, 1, tzinfo=timezone.utc)
CLASSES = ("ant", "bee", "cat")


def noise_images(count: int = 12, classes: tuple[str, ...] = CLASSES, size: tuple[int, int] = (16, 16)) -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return ImageSet.from_arrays(pixels, np.arange(count) % len(classes), classes)


@pytest.fixture(scope="session")
def make_checkpoint(one_thread: None, tmp_path_factory: pytest.TempPathFactory):
    """make_checkpoint("mobilenet-c") -> the path of its untrained weights."""
    import torch

    from edge_sel.models.registry import build
    from edge_sel.server import warmup
    from edge_sel.server.source.base import WarmupInfo

    def make(name: str) -> Path:
        torch.manual_seed(0)
        info = WarmupInfo(name, CLASSES, (16, 16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), {"flip": True})
        path = tmp_path_factory.mktemp("warm") / f"{name}.safetensors"
        warmup.save(path, build(name, len(CLASSES), info.image_size), info)
        return path

    return make


@pytest.fixture(scope="session")
def warm(make_checkpoint) -> Path:
    return make_checkpoint("resnet-c-small")


@pytest.fixture(scope="package", autouse=True)
def once_here(exports_once: None, loads_once: None, reads_once: None) -> Iterator[None]:
    """A third of an export is a table of translations, made once too."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture
def read_here_alone(monkeypatch) -> None:
    """Files of our own are read in this process, and not in one of limited memory first: others are tested for that."""
    monkeypatch.setattr("edge_sel.server.source.open.require_readable", lambda *_: None)


@pytest.fixture
def exported_forward(warm: Path):
    from edge_sel.server import warmup
    from edge_sel.server.source import torch_model

    model, info = warmup.load(warm)
    return torch_model.export_forward(model, info.image_size)


@pytest.fixture
def source_forward(warm: Path):
    """What an export of ``warm`` compiles: with a head that reads the last blocks too."""
    from edge_sel.server.source.torch_model import from_checkpoint

    return from_checkpoint(warm).forward


def colours(count: int = 60) -> ImageSet:
    """Noisy red, green and blue squares."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    pixels = rng.integers(40, 120, (count, 12, 12, 3))
    pixels[np.arange(count), :, :, labels] += 100
    return ImageSet.from_arrays(pixels.astype(np.uint8), labels, ("red", "green", "blue"))
