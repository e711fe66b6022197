"""The built-in digits and CIFAR-10."""

import subprocess
import sys
import time
import types

import numpy as np
import pytest

from edge_sel.data.builtin import PARTS, load_digits
from edge_sel.data.cifar10 import load_cifar10
from edge_sel.errors import DataError, SetupError

# --- digits


def test_parts_are_disjoint_complete_and_stratified():
    parts = [load_digits(part) for part in PARTS]
    assert [len(part) for part in parts] == [900, 500, 397]
    assert len({name for part in parts for name in part.ids}) == 1797
    for part in parts:
        assert part.classes == tuple("0123456789")
        assert np.ptp(part.class_counts()) <= 6


def test_digits_are_dark_ink_on_light_paper():
    digits = load_digits("test")
    pixels = digits.read(range(len(digits)))
    assert pixels.shape == (397, 16, 16, 3) and pixels.dtype == np.uint8
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert np.median(pixels[:, :, 0]) == 240 and pixels.min() >= 20 and pixels.max() == 240
    assert pixels[:, 4:12, 4:12].mean() < pixels[:, :, :2].mean() - 50


def test_digits_are_learnable():
    """Nearest class mean on the clean images: a check that labels and pixels belong together."""
    train, test = load_digits("pretrain"), load_digits("test")
    pixels = train.read(range(len(train))).reshape(900, -1).astype(float)
    means = np.stack([pixels[train.labels == label].mean(0) for label in range(10)])
    queries = test.read(range(len(test))).reshape(397, -1).astype(float)
    guesses = ((queries[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (guesses == test.labels).mean() > 0.85


def test_digits_load_quickly_and_stay_the_same():
    def timed():
        start = time.perf_counter()
        load_digits("field")
        return time.perf_counter() - start

    assert min(timed() for _ in range(5)) < 0.1
    assert load_digits("field").fingerprint().startswith("69ec834720c48a57")
    with pytest.raises(ValueError, match="part"):
        load_digits("train")


@pytest.mark.slow
def test_the_asset_is_what_the_tool_writes(tmp_path, pytestconfig):
    pytest.importorskip("sklearn")
    tool = pytestconfig.rootpath / "tools" / "make_digits.py"
    subprocess.run([sys.executable, tool, tmp_path / "digits.npz"], check=True, capture_output=True)
    shipped = pytestconfig.rootpath / "edge_sel" / "data" / "assets" / "digits.npz"
    with np.load(tmp_path / "digits.npz") as made, np.load(shipped) as kept:
        assert set(made) == set(kept) == {"images", "labels", "part"}
        for name in made:
            np.testing.assert_array_equal(made[name], kept[name])
    assert shipped.with_name("CREDITS.md").read_text().count("CC BY 4.0") == 1


# --- CIFAR-10


def test_cifar10_is_read_from_folders(make_tree):
    root = make_tree({"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    assert len(load_cifar10(root, "train")) == 5
    test = load_cifar10(root, "test", size=(16, 16))
    assert test.size == (16, 16) and test.classes == ("cat", "dog")


def test_cifar10_with_one_folder_missing_is_refused(make_tree):
    with pytest.raises(DataError, match="no such folder"):
        load_cifar10(make_tree({"train/cat": 3}), "test")


@pytest.fixture
def torchvision(monkeypatch):
    """fake(cifar10) stands in for the installed torchvision.datasets.CIFAR10."""

    def fake(cifar10):
        datasets = types.ModuleType("torchvision.datasets")
        datasets.CIFAR10 = cifar10
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)

    return fake


def test_cifar10_is_read_through_torchvision_in_silence(tmp_path, torchvision, capsys):
    class CIFAR10:
        classes = ("airplane", "automobile")

        def __init__(self, root, train, download):
            print("Files already downloaded and verified")
            self.data = np.full((3, 32, 32, 3), 9 if train else 5, np.uint8)
            self.targets = [0, 1, 1]

    torchvision(CIFAR10)
    train = load_cifar10(tmp_path, "train")
    assert train.labels.tolist() == [0, 1, 1] and train.ids[2] == "train/00002"
    assert (train.read([0]) == 9).all()
    assert load_cifar10(tmp_path, "test", (8, 16)).read([0, 1]).shape == (2, 8, 16, 3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("No module named 'torchvision'"), RuntimeError("operator nms does not exist")],
)
def test_a_torchvision_that_is_missing_or_mismatched_names_the_fix(tmp_path, monkeypatch, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "torchvision":
                raise error

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(SetupError, match="pip install"):
        load_cifar10(tmp_path, "train")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OSError("Name or service not known"), SetupError, "could not be downloaded"),
        (RuntimeError("File not found or corrupted."), DataError, "damaged"),
        (EOFError("Ran out of input"), DataError, "delete it"),
    ],
)
def test_a_failed_download_is_told_in_one_line(tmp_path, torchvision, error, kind, text):
    def cifar10(*_, **__):
        raise error

    torchvision(cifar10)
    with pytest.raises(kind, match=text):
        load_cifar10(tmp_path, "train")
