"""A folder of class folders becomes an image set, in one order everywhere."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from edge_sel.data import dataset, folder
from edge_sel.data.dataset import Skipped
from edge_sel.data.folder import load_folder
from edge_sel.errors import DataError

SIZE = (8, 8)


# --- layout


def test_folders_give_classes_labels_and_ids(make_tree):
    images = load_folder(make_tree({"dog": 2, "cat": 3}), SIZE)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.ids == ("cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png", "dog/001.png")
    assert images.size == SIZE and images.skipped == ()
    assert images.read([1, 4])[:, 0, 0].tolist() == [[40, 1, 100], [0, 1, 100]]


def test_order_does_not_depend_on_the_file_system(make_tree, monkeypatch):
    root = make_tree({"b": 4, "a": 3, "c/deep/er": 2})
    expected = load_folder(root, SIZE)
    iterdir = type(root).iterdir
    monkeypatch.setattr(type(root), "iterdir", lambda self: reversed(sorted(iterdir(self))))
    again = load_folder(root, SIZE)
    assert again.ids == expected.ids and again.classes == expected.classes
    np.testing.assert_array_equal(again.read(range(9)), expected.read(range(9)))


def test_a_relative_root_survives_a_change_of_directory(make_tree, monkeypatch, tmp_path):
    root = make_tree({"a": 2, "b": 2})
    monkeypatch.chdir(root.parent)
    images = load_folder(root.name, SIZE, cache_bytes=0)
    monkeypatch.chdir("/")
    assert images.read([0, 3]).shape == (2, 8, 8, 3)
    assert images.ids[0] == "a/000.png"


def test_nested_folders_are_read_and_clutter_is_left_out(make_tree, tmp_path):
    root = make_tree({"cat": 1, "cat/2024/may": 1, "dog": 1})
    pixel = Image.new("RGB", SIZE)
    for suffix in ("JPG", "jpeg", "Png", "bmp", "webp", "gif", "tif", "TIFF", "ppm", "pgm"):
        pixel.convert("L").save(root / "dog" / f"x.{suffix}")
    (root / "dog" / "notes.txt").write_text("hello")
    (root / "dog" / "no-suffix").write_text("hello")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png"):
        (root / "dog" / name).write_text("clutter")
    for name in (".git", "__MACOSX", "dog/.thumbnails", "dog/@eaDir"):
        (root / name).mkdir()
        pixel.save(root / name / "x.png")
    (root / "README.md").write_text("about")
    pixel.save(root / "loose.png")
    (root / "empty").mkdir()
    images = load_folder(root, SIZE)
    assert images.classes == ("cat", "dog")
    assert "cat/2024/may/000.png" in images.ids
    assert images.class_counts().tolist() == [2, 11]
    assert images.skipped == (
        Skipped("dog/no-suffix", "not an image suffix"),
        Skipped("dog/notes.txt", "not an image suffix"),
        Skipped("loose.png", "not in a class folder"),
    )


def test_names_are_composed_unicode(make_tree):
    decomposed = unicodedata.normalize("NFD", "Äpfel rot")
    root = make_tree({decomposed: 1, "梨 🍐": 1})
    images = load_folder(root, SIZE, classes=["梨 🍐", unicodedata.normalize("NFC", "Äpfel rot")])
    assert images.classes[1] == unicodedata.normalize("NFC", "Äpfel rot")
    assert images.labels.tolist() == [0, 1]
    assert images.ids[1].startswith(images.classes[1])


def test_names_that_are_not_utf8_are_escaped(make_tree):
    root = make_tree({"a": 1, "b": 1})
    try:
        (root / "a" / "000.png").rename(os.fsdecode(os.fsencode(root / "a") + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images = load_folder(root, SIZE, cache_bytes=0)
    assert images.ids[0] == "a/caf\\xe9.png"
    assert images.read([0]).shape == (1, 8, 8, 3)
    assert images.fingerprint() == load_folder(root, SIZE).fingerprint()


# --- broken files


def test_unreadable_images_are_listed_and_left_out(make_tree):
    root = make_tree({"cat": 3, "dog": 3})
    (root / "cat" / "001.png").write_bytes(b"")
    (root / "dog" / "a.jpg").write_text("text")
    whole = (root / "dog" / "002.png").read_bytes()
    (root / "dog" / "002.png").write_bytes(whole[:45])
    (root / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    images = load_folder(root, SIZE)
    assert images.ids == ("cat/000.png", "cat/002.png", "dog/000.png", "dog/001.png")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert [item.path for item in images.skipped] == [
        "cat/001.png",
        "dog/002.png",
        "dog/a.jpg",
        "dog/gone.png",
    ]
    reasons = [item.reason for item in images.skipped]
    assert reasons[0] == "empty file" and "truncated" in reasons[1]
    assert reasons[2:] == ["not an image", "missing"]


def test_a_new_class_without_a_readable_image_is_no_class(make_tree):
    root = make_tree({"cat": 2, "dog": 2, "fox": 1})
    (root / "dog" / "000.png").write_text("text")
    (root / "dog" / "001.png").write_text("text")
    assert load_folder(root, SIZE).classes == ("cat", "fox")
    assert load_folder(root, SIZE, classes=["cat"], new_classes="extend").labels.tolist() == [0, 0, 1]


# --- classes of a model


def test_known_classes_fix_the_labels(make_tree):
    root = make_tree({"cat": 1, "dog": 2})
    images = load_folder(root, SIZE, classes=["dog", "zebra", "cat"])
    assert images.classes == ("dog", "zebra", "cat")
    assert images.labels.tolist() == [0, 0, 2]
    assert images.class_counts().tolist() == [2, 0, 1]


def test_new_classes_are_appended_sorted(make_tree):
    root = make_tree({"zebra": 1, "cat": 1, "ant": 1})
    images = load_folder(root, SIZE, classes=["dog", "cat"], new_classes="extend")
    assert images.classes == ("dog", "cat", "ant", "zebra")
    assert images.labels.tolist() == [1, 2, 3]


def test_limit_per_class_is_spread_over_the_class(make_tree):
    images = load_folder(make_tree({"a": 10, "b": 2}), SIZE, limit_per_class=3)
    assert images.ids == ("a/000.png", "a/003.png", "a/006.png", "b/000.png", "b/001.png")
    with pytest.raises(ValueError, match="limit_per_class"):
        load_folder("anywhere", SIZE, limit_per_class=0)


def test_only_the_images_that_were_asked_for(make_tree):
    root = make_tree({"a": 4, "b": 3, "c": 2})
    asked = {"b/002.png", "a/001.png", "a/003.png", "a/gone.png"}
    images = load_folder(root, SIZE, classes=("c", "b", "a"), only=asked)
    assert images.ids == ("b/002.png", "a/001.png", "a/003.png") and images.labels.tolist() == [1, 2, 2]
    assert load_folder(root, SIZE, only=asked).classes == ("a", "b"), "a class of which nothing was asked is none"
    assert load_folder(root, SIZE, only=asked, limit_per_class=1).ids == ("a/001.png", "b/002.png")
    assert load_folder(root, SIZE, only=None).class_counts().tolist() == [4, 3, 2]
    with pytest.raises(DataError):
        load_folder(root, SIZE, only=())


def test_unknown_classes_are_refused_whichever_images_were_asked_for(make_tree):
    with pytest.raises(DataError, match="not classes of the model"):
        load_folder(make_tree({"a": 2, "b": 2}), SIZE, classes=("a",), only={"a/000.png"})


# --- links


def test_links_that_lead_back_are_skipped(make_tree):
    root = make_tree({"cat": 2, "dog": 2})
    (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    (root / "cat" / "up").symlink_to("..", target_is_directory=True)
    (root / "dog" / "cats").symlink_to(root / "cat", target_is_directory=True)
    (root / "whole").symlink_to(root, target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    images = load_folder(root, SIZE)
    assert images.classes == ("cat", "dog") and images.class_counts().tolist() == [2, 2]
    assert {item.path for item in images.skipped} == {"cat/again", "cat/up", "dog/cats", "whole"}
    assert {item.reason for item in images.skipped} == {"a link that leads back"}


def test_links_to_other_places_are_followed(make_tree, tmp_path):
    elsewhere = make_tree({"card1": 2, "card2/dcim": 3}, root="cards")
    root = tmp_path / "linked"
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(elsewhere / "card1", target_is_directory=True)
    (root / "dog" / "more").symlink_to(elsewhere / "card2", target_is_directory=True)
    (root / "dog" / "one.png").symlink_to(elsewhere / "card1" / "000.png")
    images = load_folder(root, SIZE)
    assert images.class_counts().tolist() == [2, 4]
    assert "dog/more/dcim/000.png" in images.ids and "dog/one.png" in images.ids


# --- memory


@pytest.mark.parametrize("room", [0, 1, 3, 5, 100])
def test_the_cache_never_changes_the_result(make_tree, room):
    root = make_tree({"cat": 3, "dog": 2})
    everything = load_folder(root, SIZE)
    images = load_folder(root, SIZE, cache_bytes=room * 8 * 8 * 3)
    order = [4, 0, 2, 2, 3]
    np.testing.assert_array_equal(images.read(order), everything.read(order))
    np.testing.assert_array_equal(images.subset(order).read([1, 0]), everything.read([0, 4]))
    assert images.fingerprint() == everything.fingerprint()


def test_every_image_is_decoded_once_at_load(make_tree, monkeypatch):
    root = make_tree({"cat": 3, "dog": 2})
    read, seen = folder.read_image, []
    for module in (folder, dataset):
        monkeypatch.setattr(
            module, "read_image", lambda path, size, **limit: seen.append(path.name) or read(path, size, **limit)
        )
    images = load_folder(root, SIZE, cache_bytes=2 * 8 * 8 * 3)
    assert len(seen) == 5
    images.read([0, 1])
    assert len(seen) == 5
    images.read([1, 4])
    assert seen[5:] == ["001.png"]


def test_an_image_that_turns_unreadable_is_named(make_tree):
    root = make_tree({"cat": 2, "dog": 2})
    images = load_folder(root, SIZE, cache_bytes=0)
    (root / "dog" / "001.png").unlink()
    assert images.read([0, 1, 2]).shape == (3, 8, 8, 3)
    with pytest.raises(DataError, match=r"can no longer be read, missing: .*dog/001\.png"):
        images.read([3])
