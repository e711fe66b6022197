"""The parts of the benchmark of real photographs that need neither its pictures nor its network."""

from __future__ import annotations

import csv
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import photo_benchmark  # noqa: E402
import photo_opponents  # noqa: E402

CLASSES = ("cat", "dog", "house")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Twelve pictures of each class, of a colour of their own."""
    root = tmp_path_factory.mktemp("photos")
    for kind in ("photos", "photos-test", "paintings", "paintings-test"):
        for number, label in enumerate(CLASSES):
            folder = root / "animals" / kind / label
            folder.mkdir(parents=True)
            for place in range(12):
                Image.new("RGB", (8, 8), (80 * number, place, 0)).save(folder / f"{place}.png")
    return Namespace(photos=root, work=tmp_path_factory.mktemp("work"))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))


def test_so_many_pictures_of_each_class_are_drawn_by_the_seed(given):
    images, test = photo_benchmark.device_images("paintings", 5, 0, given)
    first = files(images)
    assert len(first) == 15 and test.name == "paintings-test"
    assert files(photo_benchmark.device_images("paintings", 5, 0, given)[0]) == first
    assert files(photo_benchmark.device_images("paintings", 5, 1, given)[0]) != first


def test_settings_are_compared_by_pictures_that_were_not_drawn_nor_of_the_test(given):
    images, others = photo_benchmark.device_images("tuning", 5, 0, given)
    drawn, left = set(files(images)), set(files(others))
    assert len(drawn) == 15 and not drawn & left and len(drawn | left) == 36
    command = photo_benchmark.command("full", "tuning", Path("p"), images, Path("o"), 0)
    assert command[-4:] == ["--plan", "closed_form,full", "--epochs", "3"]


def test_photographs_through_a_camera_are_others_of_the_same_names(given):
    images, test = photo_benchmark.device_images("dark", 3, 0, given)
    assert test == given.work / "dark-photos-test" and len(files(test)) == 36 and len(files(images)) == 9
    plain = np.asarray(Image.open(given.photos / "animals" / "photos-test" / "house" / "5.png"))
    dark = np.asarray(Image.open(test / "house" / "5.png").resize((8, 8)))
    assert dark.mean() < 0.8 * plain.mean()
    made = (test / "house" / "5.png").stat().st_mtime_ns
    photo_benchmark.device_images("dark", 3, 1, given)
    assert (test / "house" / "5.png").stat().st_mtime_ns == made


def test_new_classes_are_those_that_the_server_has_not(given):
    images, test = photo_benchmark.device_images("new", 4, 0, given)
    assert photo_opponents.classes_of(images) == ["dog", "house"] and len(files(images)) == 8
    assert test.name == "photos-test"
    command = photo_benchmark.command("default", "new", Path("p"), images, Path("o"), 3)
    assert command[-2:] == ["--new-classes", "extend"] and "--seed" in command


def test_whoever_is_right_is_counted_by_class_names(given):
    def red(images):
        """The class by its colour, in another order than the folders'."""
        return np.eye(3)[[[2, 0, 1][round(image[0, 0, 0] / 80)] for image in images]]

    folder = given.photos / "animals" / "photos-test"
    assert photo_benchmark.share_right(red, ["dog", "house", "cat"], folder) == 1.0
    assert photo_benchmark.share_right(red, ["house", "dog", "cat"], folder, ["cat", "dog"]) == 0.5


def test_classes_are_imprinted_and_others_keep_their_row(tmp_path):
    features = np.array([[2.0, 0.0], [4.0, 0.1], [0.0, 3.0]], np.float32)
    photo_opponents._imprint(features, np.array([0, 0, 1]), np.array([[9, 9], [9, 9], [-1, -1.0]]), 3, tmp_path)
    weight = np.load(tmp_path / "head.npz")["weight"]
    assert (features @ weight.T).argmax(1).tolist() == [0, 0, 1]
    assert weight[2] == pytest.approx([-(0.5**0.5)] * 2)


def test_what_was_measured_is_a_table_and_a_file(tmp_path):
    rows = [
        {"case": "new-5", "system": "default", "seed": seed, "test": 0.9, "server": 0.98, "cpu_s": seed, "mb": 300}
        for seed in range(3)
    ]
    assert "| new-5 | default | 3 | 90.0 ± 0.0 | 98.0 ± 0.0 | 1 | 300 |  |" in photo_benchmark.table(rows)
    photo_benchmark.write_rows(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [row["test"] for row in csv.DictReader(file)] == ["0.9"] * 3
