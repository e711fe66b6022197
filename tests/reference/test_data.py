"""Data sets by name or folder, and fewer images of each class at a reduced scale."""

import numpy as np
import pytest
from PIL import Image

from edge_sel.errors import DataError, SetupError, UsageError
from edge_sel.reference.data import KNOWN, load_sets, planned_size
from edge_sel.reference.systems import SYSTEMS, find_scale, find_systems

SMOKE, SMALL, FULL = map(find_scale, ("smoke", "small", "full"))


def tree(root, counts):
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for n in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / name / f"{n:03}.png")
    return root


def test_digits_are_always_there():
    sets = load_sets("digits", SMOKE, 32)
    assert (len(sets.train), len(sets.test)) == (400, 200) and set(sets.train.class_counts()) == {40}
    assert not {*sets.train.ids} & {*sets.test.ids}
    assert len(load_sets("digits", FULL, 32).train) == 900 == planned_size("digits", FULL)[0]


def test_a_folder_of_classes_has_a_fifth_held_out(tmp_path):
    sets = load_sets(str(tree(tmp_path, {"a": 10, "b": 20})), FULL, 16)
    assert (len(sets.train), len(sets.test), sets.train.size) == (24, 6, (16, 16))


def test_train_and_test_folders_are_taken_as_they_are(tmp_path):
    tree(tmp_path / "train", {"a": 4, "b": 3})
    tree(tmp_path / "test", {"b": 2})
    sets = load_sets(str(tmp_path), FULL, 16)
    assert sets.test.classes == sets.train.classes == ("a", "b") and sets.test.labels.tolist() == [1, 1]


def test_cifar10_is_found_as_folders(tmp_path):
    for part in ("train", "test"):
        tree(tmp_path / part, {"cat": 3, "dog": 3})
    sets = load_sets("cifar10", FULL, 32, {"EDGE_SEL_CIFAR10": str(tmp_path)})
    assert sets.train.classes == ("cat", "dog") and len(sets.test) == 6


@pytest.mark.parametrize(("name", "near"), [("cifar11", "cifar10"), ("digit", "digits"), ("fminst", "fmnist")])
def test_an_unknown_name_names_the_nearest(name, near):
    with pytest.raises(UsageError, match=f"did you mean {near}"):
        load_sets(name, SMOKE, 32)


def test_one_class_is_not_enough(tmp_path):
    tree(tmp_path / "train", {"a": 4})
    tree(tmp_path / "test", {"a": 4})
    with pytest.raises(DataError, match="needs two"):
        load_sets(str(tmp_path), FULL, 16)


def test_torchvision_that_is_missing_is_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SetupError, match=r"svhn needs torchvision .*pip install") as error:
        load_sets("svhn", SMOKE, 32)
    assert "\n" not in str(error.value)


def test_the_size_of_a_known_set_is_planned_before_it_is_loaded():
    assert planned_size("cifar10", FULL) == (50_000, 10) and planned_size("somewhere", FULL) is None
    assert planned_size("cifar10", SMALL) == (SMALL.train_per_class * 10, 10)
    wanted = {"cifar10", "cifar100", "svhn", "stl10", "kmnist", "fmnist", "food101", "aircraft", "cars"}
    assert KNOWN.keys() == wanted


def test_a_larger_scale_runs_the_published_systems_and_smoke_runs_all():
    suite = [
        "baseline",
        "lottery-ticket",
        "sel-95",
        "warmup-sel",
        "sel-v3",
        "ast",
        "dihcl-exp",
        "random",
        "fast",
        "fast-sel",
    ]
    assert [system.name for system in find_systems([], FULL)] == suite
    assert len(find_systems([], SMALL)) == 6 and len(find_systems([], SMOKE)) == len(SYSTEMS)
    assert [s.name for s in find_systems(["fast", "ast", "fast"], SMOKE)] == ["fast", "ast"]
    with pytest.raises(UsageError, match="did you mean warmup-sel"):
        find_systems(["warmup_sel"], FULL)
    with pytest.raises(UsageError, match="did you mean smoke"):
        find_scale("smok")
