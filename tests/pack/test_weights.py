"""The file of an expert: it comes back as it was written, and whatever else is there is refused in one line."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from edge_sel.errors import BadInputError, SetupError
from edge_sel.pack.weights import FORMAT, read_expert, write_expert
from tests.edge.sessions import damage, flipping


@pytest.fixture
def weights(digits_pack):
    rng = np.random.default_rng(0)
    return {name: (value + rng.normal(size=value.shape)).astype("f4") for name, value in digits_pack.weights().items()}


@pytest.fixture
def written(digits_pack, weights, tmp_path):
    write_expert(tmp_path / "expert.safetensors", digits_pack, weights)
    return tmp_path / "expert.safetensors"


def rewritten(path, pack, change):
    """An expert with other tensors."""
    found = load_file(path)
    change(found)
    save_file(found, path, {"format": FORMAT, "pack": pack.digest})
    return path


def refused(path, pack, *words):
    with pytest.raises(BadInputError) as caught:
        read_expert(path, pack)
    line = str(caught.value)
    assert "\n" not in line and path.name in line
    for word in words:
        assert word in line


def test_it_comes_back_as_float32_with_matrices_rounded(written, digits_pack, weights):
    found = read_expert(written, digits_pack).weights
    assert found.keys() == weights.keys() == digits_pack.weights().keys()
    for name, value in weights.items():
        rounded = value if value.ndim < 2 else value.astype(np.float16)
        assert found[name].dtype == np.float32 and np.array_equal(found[name], rounded.astype(np.float32)), name


def test_matrices_take_two_bytes_each_number_and_statistics_four(written, digits_pack, weights):
    stored = load_file(written)
    assert all(value.dtype == (np.float32 if value.ndim < 2 else np.float16) for value in stored.values())
    assert written.stat().st_size < 0.6 * sum(value.nbytes for value in weights.values())


def test_its_identity_is_that_of_its_content(written, digits_pack, weights, tmp_path):
    first = read_expert(written, digits_pack).digest
    (tmp_path / "copy").write_bytes(written.read_bytes())
    assert read_expert(tmp_path / "copy", digits_pack).digest == first
    write_expert(tmp_path / "other", digits_pack, {**weights, "head.bias": weights["head.bias"] + 1})
    assert read_expert(tmp_path / "other", digits_pack).digest != first


def test_of_another_pack_it_is_refused(written, digits_pack):
    """Even if its weights have the same names and shapes."""
    refused(written, flipping(digits_pack), "another pack")


@pytest.mark.parametrize("change", ["missing", "more", "other shape"])
def test_with_other_weights_than_the_packs_it_is_refused(change, written, digits_pack):
    def bend(found):
        if change == "missing":
            del found["head.bias"]
        elif change == "more":
            found["more"] = np.zeros(3, np.float32)
        else:
            found["head.bias"] = np.zeros(3, np.float32)

    refused(rewritten(written, digits_pack, bend), digits_pack, "another pack")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value, written, digits_pack):
    def bend(found):
        found["head.weight"][0, 0] = value

    refused(rewritten(written, digits_pack, bend), digits_pack, "not numbers")


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "header", "missing", "folder"])
def test_what_cannot_be_read_is_refused(kind, written, digits_pack, tmp_path):
    content, path = written.read_bytes(), tmp_path / "bad.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "header":
        path.write_bytes(content)
        damage(path, 8)
    elif kind != "missing":
        path.write_bytes({"cut": content[:-100], "empty": b"", "text": b"hello"}[kind])
    refused(path, digits_pack, "cannot be read")


def test_a_type_that_numpy_does_not_have_is_refused(digits_pack, tmp_path):
    """What is wrong depends on the version of safetensors."""
    header = b'{"__metadata__":{"format":"%s"},"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    header %= FORMAT.encode()
    path = tmp_path / "small.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    refused(path, digits_pack)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "edge-sel-expert-9"}])
def test_other_safetensors_are_no_expert(metadata, digits_pack, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save(dict(digits_pack.weights()), metadata))
    refused(path, digits_pack, "not an expert")


@pytest.mark.parametrize("value", [np.nan, 1e6], ids=["not a number", "too large for float16"])
def test_training_that_diverged_writes_nothing(value, digits_pack, weights, written):
    before = written.read_bytes()
    weights["head.weight"][0, 0] = value
    with pytest.raises(BadInputError, match="diverged"):
        write_expert(written, digits_pack, weights)
    assert written.read_bytes() == before


def test_a_place_that_cannot_be_written_is_one_line(digits_pack, weights, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot write"):
        write_expert(tmp_path / "file" / "expert.safetensors", digits_pack, weights)
