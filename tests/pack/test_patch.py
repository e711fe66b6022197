"""A pack made of another one and what differs."""

import json

import numpy as np
import pytest

from edge_sel.errors import PackError
from edge_sel.pack.patch import apply_patch, make_patch
from edge_sel.pack.reader import builtin_pack, open_pack


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """The built-in pack, and one with another head, as files."""
    folder = tmp_path_factory.mktemp("packs")
    old = builtin_pack()
    old.save(folder / "old.edgepack")
    head = old.manifest.model.head
    weights = {n: v * np.float32(1.5) if n in head else v for n, v in old.weights().items()}
    old.with_weights(weights, old.manifest.model.classes, "a test").save(folder / "new.edgepack")
    return open_pack(folder / "old.edgepack"), open_pack(folder / "new.edgepack")


def test_a_patch_holds_what_differs_and_makes_the_same_files(packs, tmp_path):
    old, new = packs
    patch = make_patch(old, new)
    whole = sum(len(content) for content in new.files.values())
    assert sum(part.nbytes for part in patch.values()) < whole / 5
    assert {name.partition(" ")[0] for name in patch} == {"names", "file", "weight"}
    made = apply_patch(old, patch, new.digest, tmp_path / "made.edgepack")
    assert made.digest == new.digest and made.files == new.files
    assert [path.name for path in tmp_path.iterdir()] == ["made.edgepack"]


def test_a_patch_of_equal_packs_is_nearly_nothing_and_removes_what_the_new_one_has_not(packs, tmp_path):
    old, _ = packs
    assert [*make_patch(old, old)] == ["names"]
    pytest.importorskip("cryptography", reason="needs edge-sel[sign]")
    from edge_sel.pack.sign import sign_file
    from edge_sel.pack.signatures import make_key, read_private_key, read_trusted_keys

    make_key(tmp_path / "key", tmp_path / "key.pub")
    old.save(tmp_path / "signed.edgepack")
    sign_file(tmp_path / "signed.edgepack", read_private_key(tmp_path / "key"))
    trusted = read_trusted_keys([tmp_path / "key.pub"])
    signed = open_pack(tmp_path / "signed.edgepack", trusted)
    made = apply_patch(old, make_patch(old, signed), signed.digest, tmp_path / "made.edgepack", trusted)
    assert made.files == signed.files
    with pytest.raises(PackError, match="sign"):
        apply_patch(signed, make_patch(signed, old), old.digest, tmp_path / "made.edgepack", trusted)
    assert open_pack(tmp_path / "made.edgepack", trusted).files == signed.files  # what was there stays


@pytest.mark.parametrize(
    "spoil",
    [
        lambda patch: patch.pop("names"),
        lambda patch: patch.update(names=np.frombuffer(b"[", np.uint8)),
        lambda patch: patch.update(names=np.frombuffer(json.dumps(["../../etc/passwd"]).encode(), np.uint8)),
        lambda patch: patch.update(names=np.frombuffer(b"7", np.uint8)),
        lambda patch: patch.update({"file manifest.json": np.zeros(4, np.uint8)}),
        lambda patch: patch.update({"file ../../out": np.zeros(4, np.uint8)}),
        lambda patch: patch.update({"weight head.weight": np.zeros((2, 2), np.float32)}),
        lambda patch: patch.clear(),
    ],
)
def test_a_spoilt_patch_is_one_line_and_leaves_what_was_there(packs, tmp_path, spoil):
    old, new = packs
    patch, path = make_patch(old, new), tmp_path / "made.edgepack"
    path.write_bytes(b"before")
    spoil(patch)
    try:
        assert apply_patch(old, patch, new.digest, path).files == new.files  # a part that nobody reads
    except PackError as error:
        assert "\n" not in str(error) and path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["made.edgepack"]


def test_a_patch_of_another_pack_makes_none(packs, tmp_path):
    old, new = packs
    with pytest.raises(PackError, match="another pack"):
        apply_patch(old, make_patch(old, old), new.digest, tmp_path / "made.edgepack")
    with pytest.raises(PackError):
        apply_patch(new, {}, new.digest, tmp_path / "made.edgepack")
    assert not [*tmp_path.iterdir()]
