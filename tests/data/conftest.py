"""Small pictures to put on disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def quarters(height=24, width=32):
    """Red, green / blue, white: shows which way up a picture is."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = (200, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 200, 30)
    pixels[height // 2 :, : width // 2] = (30, 30, 200)
    pixels[height // 2 :, width // 2 :] = (230, 230, 230)
    return pixels


@pytest.fixture
def picture():
    return quarters()


@pytest.fixture
def make_tree(tmp_path):
    """make_tree({"cat": 3, "dog": 2}) -> a folder with that many PNGs per class, all different."""

    def make(counts, root="images", size=(8, 8)) -> Path:
        base = tmp_path / root
        for number, (name, count) in enumerate(counts.items()):
            (base / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                colour = (number * 40 % 256, index % 256, 100)
                Image.new("RGB", size[::-1], colour).save(base / name / f"{index:03d}.png")
        return base

    return make
