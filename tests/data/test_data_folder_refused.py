"""Folders that hold no data set, or too little of one, are refused in one line that says what to do."""

import os

import pytest
from PIL import Image

from edge_sel.data.dataset import Skipped
from edge_sel.data.folder import load_folder, require_trainable
from edge_sel.errors import BadInputError, DataError

SIZE = (8, 8)


def refused(root, **options):
    with pytest.raises(DataError) as caught:
        load_folder(root, SIZE, **options)
    assert caught.value.exit_code == BadInputError.exit_code
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    assert str(root) in str(caught.value)
    return str(caught.value)


def test_a_root_that_is_missing_a_file_or_empty_is_refused(tmp_path):
    assert "no such folder" in refused(tmp_path / "none")
    (tmp_path / "images.zip").write_text("PK")
    assert "a file, not a folder" in refused(tmp_path / "images.zip")
    (tmp_path / "empty").mkdir()
    assert "no class folders" in refused(tmp_path / "empty")


def test_images_without_class_folders_are_refused(tmp_path):
    for number in range(3):
        Image.new("RGB", SIZE).save(tmp_path / f"{number}.png")
    message = refused(tmp_path)
    assert "3 images but no class folders" in message and "ROOT/<class>/<image>" in message


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    assert "no images in the class folders" in refused(tmp_path)
    (tmp_path / "cat" / "a.heic").write_text("x")
    assert "no readable images, 1 skipped, the first is cat/a.heic, not an image suffix" in refused(tmp_path)


def test_a_folder_with_nothing_readable_is_refused(make_tree):
    root = make_tree({"cat": 2, "dog": 1})
    for path in root.rglob("*.png"):
        path.write_text("text")
    message = refused(root)
    assert "no readable images, 3 skipped, the first is cat/000.png, not an image" in message


def test_a_folder_of_splits_is_refused_unless_they_are_classes(make_tree):
    root = make_tree({"train/cat": 1, "test/cat": 1})
    message = refused(root)
    assert "splits, not classes" in message and str(root / "test") in message
    # A class may be called "train", too.
    root = make_tree({"train": 1, "test": 1}, root="vehicles")
    assert load_folder(root, SIZE).classes == ("test", "train")
    root = make_tree({"train/red": 1}, root="trains")
    assert load_folder(root, SIZE, classes=["train", "car"]).labels.tolist() == [0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_without_permission_are_skipped_or_refused(make_tree):
    root = make_tree({"cat": 1, "dog": 1})
    (root / "dog").chmod(0)
    try:
        assert Skipped("dog", "permission denied") in load_folder(root, SIZE).skipped
    finally:
        (root / "dog").chmod(0o700)
    root.chmod(0)
    try:
        assert "permission denied" in refused(root)
    finally:
        root.chmod(0o700)


def test_a_folder_that_may_not_be_listed_is_skipped_or_refused(make_tree, monkeypatch):
    root = make_tree({"cat": 1, "dog": 1})
    iterdir = type(root).iterdir

    def guarded(self):
        if self == blocked:
            raise PermissionError(13, "Permission denied")
        return iterdir(self)

    monkeypatch.setattr(type(root), "iterdir", guarded)
    blocked = root / "dog"
    assert load_folder(root, SIZE).skipped == (Skipped("dog", "permission denied"),)
    blocked = root
    assert "permission denied" in refused(root)


def test_unknown_classes_are_refused_with_the_nearest(make_tree):
    root = make_tree({"Cat": 1, "trcuk": 1, "ship": 1})
    message = refused(root, classes=["cat", "ship", "truck"])
    assert "Cat (nearest: cat)" in message and "trcuk (nearest: truck)" in message
    assert "ship (" not in message and "--new-classes extend" in message


def test_many_unknown_classes_stay_one_short_line(make_tree):
    message = refused(make_tree({f"class{number:02d}": 1 for number in range(20)}), classes=["class99"])
    assert "and 12 more" in message and len(message) < 600


def test_too_few_classes_or_images_to_train_on_are_refused(make_tree):
    require_trainable(load_folder(make_tree({"cat": 2, "dog": 2}), SIZE, classes=["cat", "dog", "fox"]))
    one = load_folder(make_tree({"cat": 5}, root="one"), SIZE, classes=["cat", "dog"])
    with pytest.raises(DataError, match=r"one class only \(cat\); training needs two: /data .*add a folder"):
        require_trainable(one, where="/data")
    few = load_folder(make_tree({"cat": 5, "dog": 1, "fox": 3}, root="few"), SIZE)
    with pytest.raises(DataError, match=r"too few images, dog: 1 \(at least 2"):
        require_trainable(few)
    with pytest.raises(DataError, match="dog: 1, fox: 3"):
        require_trainable(few, 4)
    require_trainable(few, minimum_per_class=1)
    with pytest.raises(DataError, match="no images; training needs two"):
        require_trainable(few.subset([]))
