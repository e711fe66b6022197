"""Signatures: what is signed is all that is read, and nothing else than a good signature by a trusted key opens a pack."""

from __future__ import annotations

import base64
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.errors import BadInputError, PackError, SetupError, UsageError
from edge_sel.pack.anchors import ANCHORS
from edge_sel.pack.container import write_zip as write_pack_zip
from edge_sel.pack.manifest import MANIFEST, WEIGHTS
from edge_sel.pack.reader import builtin_pack, open_pack
from edge_sel.pack.sign import sign_file
from edge_sel.pack.signatures import (
    MOST_SIGNATURES,
    SIGNATURES,
    add_signature,
    find_signers,
    fingerprint,
    read_signatures,
)
from edge_sel.pack.weights import read_expert, write_expert
from tests.pack.hostile import BUILTIN, builtin_files, sealed, write_folder, write_zip

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(5)]
NAMES = [fingerprint(key.public_key()) for key in KEYS]
MESSAGE = b"the manifest"


def trusting(*numbers):
    return {NAMES[number]: KEYS[number].public_key() for number in numbers}


def signed_by(numbers, kind="pack", message=MESSAGE):
    content = None
    for number in numbers:
        content = add_signature(kind, message, content, KEYS[number], "here")
    return content


@pytest.fixture(scope="module")
def signed_file(tmp_path_factory) -> Path:
    """The built-in pack, signed by the first key."""
    path = tmp_path_factory.mktemp("signed") / "one.edgepack"
    shutil.copy(BUILTIN, path)
    sign_file(path, KEYS[0])
    return path


@pytest.fixture(params=["pack", "one.edgepack"])
def signed(request, tmp_path, signed_file) -> Path:
    """The same in both forms, for one test."""
    path = tmp_path / request.param
    if path.suffix:
        shutil.copy(signed_file, path)
    else:
        with zipfile.ZipFile(BUILTIN) as archive:
            archive.extractall(path)
        sign_file(path, KEYS[0])
    return path


def refused(path, trusted, *words):
    with pytest.raises(PackError) as caught:
        open_pack(path, trusted)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    for word in words:
        assert word in line, (word, line)


# Who signed


@given(st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)))
def test_one_trusted_signature_suffices_and_nothing_less(signers, trusted):
    content = signed_by(signers)
    if signers & trusted:
        found = find_signers("pack", MESSAGE, content, trusting(*trusted), "here")
        assert found.checked and set(found.fingerprints) == {NAMES[number] for number in signers & trusted}
    else:
        with pytest.raises(PackError):
            find_signers("pack", MESSAGE, content, trusting(*trusted), "here")
    untested = find_signers("pack", MESSAGE, content, None, "here")
    assert untested is None if not signers else set(untested.fingerprints) == {NAMES[number] for number in signers}
    assert untested is None or not untested.checked


@given(st.integers(0, 63), st.integers(1, 255))
def test_any_other_signature_is_refused(at, bits):
    body = json.loads(signed_by([0]))
    value = bytearray(base64.b64decode(body["signatures"][0]["signature"]))
    value[at] ^= bits
    body["signatures"][0]["signature"] = base64.b64encode(value).decode()
    with pytest.raises(PackError, match="is wrong"):
        find_signers("pack", MESSAGE, json.dumps(body).encode(), trusting(0), "here")


@given(st.binary(max_size=100))
def test_any_other_message_is_refused(message):
    if message != MESSAGE:
        with pytest.raises(PackError, match="is wrong"):
            find_signers("pack", message, signed_by([0]), trusting(0), "here")


def test_the_bytes_that_are_signed_are_those_of_the_description():
    """A signature made elsewhere, as by `openssl pkeyutl`, must hold, in later versions too."""
    for kind, prefix in (("pack", b"edge-sel pack manifest 1\0"), ("expert", b"edge-sel expert 1\0")):
        (found,) = read_signatures(signed_by([0], kind), "here")
        assert found.value == KEYS[0].sign(prefix + MESSAGE)


def test_a_signature_of_an_expert_is_none_of_a_pack():
    for kind, other in (("pack", "expert"), ("expert", "pack")):
        with pytest.raises(PackError, match="is wrong"):
            find_signers(kind, MESSAGE, signed_by([0], other), trusting(0), "here")


def test_a_bad_signature_beside_a_good_one_harms_nobody():
    """Anybody can add one to a pack; it must not keep a fleet from opening it."""
    body = json.loads(signed_by([0, 1]))
    body["signatures"][0]["signature"] = base64.b64encode(bytes(64)).decode()
    found = find_signers("pack", MESSAGE, json.dumps(body).encode(), trusting(0, 1), "here")
    assert found.fingerprints == (NAMES[1],)


# The signatures' file


def entries(count):
    return [{"key": f"{number:064x}", "signature": base64.b64encode(bytes(64)).decode()} for number in range(count)]


GOOD = entries(1)[0]
FILES = {
    "empty": b"",
    "no text": b"\xff\xfe",
    "no table": b"[]",
    "nested": b"[" * 10_000,
    "without signatures": {"format": 1, "signatures": []},
    "another key": {"format": 1, "signatures": [GOOD], "more": 1},
    "another key inside": {"format": 1, "signatures": [{**GOOD, "algorithm": "none"}]},
    "no format": {"signatures": [GOOD]},
    "format true": {"format": True, "signatures": [GOOD]},
    "one as a table": {"format": 1, "signatures": GOOD},
    "words": {"format": 1, "signatures": ["a"]},
    "too many": {"format": 1, "signatures": entries(MOST_SIGNATURES + 1)},
    "two by one key": {"format": 1, "signatures": [GOOD, GOOD]},
    "key in capitals": {"format": 1, "signatures": [{**GOOD, "key": "A" * 64}]},
    "key with a line": {"format": 1, "signatures": [{**GOOD, "key": "a" * 64 + "\n"}]},
    "key of no text": {"format": 1, "signatures": [{**GOOD, "key": 1}]},
    "short": {"format": 1, "signatures": [{**GOOD, "signature": base64.b64encode(bytes(63)).decode()}]},
    "no base64": {"format": 1, "signatures": [{**GOOD, "signature": "\x1b[2J" * 22}]},
    "base64 and more": {"format": 1, "signatures": [{**GOOD, "signature": GOOD["signature"] + "\n!"}]},
    "signature of no text": {"format": 1, "signatures": [{**GOOD, "signature": None}]},
    "newer": {"format": 2, "signatures": [GOOD]},
    "large": b" " * 20_000 + json.dumps({"format": 1, "signatures": [GOOD]}).encode(),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("trusted", [None, trusting(0)], ids=["not required", "required"])
def test_a_file_of_signatures_that_is_none_is_refused(case, trusted, tmp_path):
    content = FILES[case] if isinstance(FILES[case], bytes) else json.dumps(FILES[case]).encode()
    files = {**sealed(*builtin_files()), SIGNATURES: content}
    refused(write_zip(tmp_path / "a.edgepack", files), trusted, SIGNATURES)


@given(st.binary(max_size=300))
def test_any_bytes_are_signatures_or_one_line(content):
    with pytest.raises(PackError, match=SIGNATURES):
        read_signatures(content, "here")


def test_as_many_as_there_is_room_for():
    content = json.dumps({"format": 1, "signatures": entries(MOST_SIGNATURES)}).encode()
    assert len(read_signatures(content, "here")) == MOST_SIGNATURES
    with pytest.raises(UsageError, match="signatures already"):
        add_signature("pack", MESSAGE, content, KEYS[0], "here")


# A pack


def test_a_signed_pack_opens_with_its_key_and_without_any(signed):
    checked, unchecked = open_pack(signed, trusting(0, 1)), open_pack(signed)
    assert checked.signers == ((NAMES[0],), True) and unchecked.signers == ((NAMES[0],), False)
    assert checked.digest == unchecked.digest == builtin_pack().digest
    refused(signed, trusting(1), NAMES[0], "not by a required key")
    refused(signed, {}, "not by a required key")


def test_an_unsigned_pack_opens_only_where_no_signature_is_required():
    assert builtin_pack().signers is None
    with pytest.raises(PackError, match="not signed"):
        builtin_pack(trusting(0))


def held(path):
    """Name -> bytes of a pack."""
    if path.is_dir():
        return {child.name: child.read_bytes() for child in path.iterdir()}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", sorted(builtin_files()[0]))
def test_every_file_is_covered_by_the_signature(name, signed_file, tmp_path):
    """Somebody changes one byte of a file, and writes a manifest whose hashes are right."""
    signatures = held(signed_file)[SIGNATURES]
    files, body = builtin_files()
    changed = {**files, name: bytes([*files[name][:-1], files[name][-1] ^ 1])}
    refused(write_zip(tmp_path / "b.edgepack", {**sealed(changed, body), SIGNATURES: signatures}), trusting(0), "wrong")
    signed = {**held(signed_file), name: changed[name]}
    refused(write_zip(tmp_path / "c.edgepack", signed), trusting(0), "damaged")


@pytest.mark.parametrize("part", ["gains", "calibration", "provenance", "model", "plans"])
def test_all_of_the_manifest_is_covered(part, signed_file, tmp_path):
    files, body = builtin_files()
    body[part] = [] if part == "gains" else {**body[part], "more": 1}
    changed = {**sealed(files, body), SIGNATURES: held(signed_file)[SIGNATURES]}
    refused(write_folder(tmp_path / "changed", changed), trusting(0), "wrong")


def test_a_manifest_is_not_even_read_before_its_signature_is_good(signed_file, tmp_path):
    changed = {**held(signed_file), MANIFEST: b"[" * 100_000}
    refused(write_folder(tmp_path / "changed", changed), trusting(0), "is wrong")
    refused(write_folder(tmp_path / "unsigned", {MANIFEST: b"["}), trusting(0), "not signed")


def test_nothing_lies_in_a_signed_pack_that_is_not_signed(signed):
    if signed.is_dir():
        (signed / "more.onnx").write_bytes(b"more")
    else:
        with zipfile.ZipFile(signed, "a") as archive:
            archive.writestr("more.onnx", b"more")
    refused(signed, trusting(0), "more.onnx", "not in its manifest")
    with pytest.raises(PackError, match=r"more\.onnx"):
        sign_file(signed, KEYS[1])
    assert open_pack(signed).signers is not None


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", [MANIFEST, SIGNATURES, WEIGHTS, ANCHORS])
def test_a_file_that_is_there_twice_is_refused(name, signed_file, tmp_path):
    shutil.copy(signed_file, tmp_path / "a.edgepack")
    with zipfile.ZipFile(tmp_path / "a.edgepack", "a") as archive:
        archive.writestr(name, b"other")
    refused(tmp_path / "a.edgepack", trusting(0), "twice")


def test_a_link_in_place_of_the_signatures_is_not_followed(tmp_path):
    pack = write_folder(tmp_path / "pack", sealed(*builtin_files()))
    sign_file(pack, KEYS[0])
    (pack / SIGNATURES).rename(tmp_path / "elsewhere")
    (pack / SIGNATURES).symlink_to(tmp_path / "elsewhere")
    refused(pack, trusting(0), "not a regular file")


# Signing


def test_signing_changes_nothing_else(signed):
    assert {name: content for name, content in held(signed).items() if name != SIGNATURES} == held(BUILTIN)
    before = held(signed)
    assert sign_file(signed, KEYS[0]) == (NAMES[0],) and held(signed) == before
    assert sign_file(signed, KEYS[1]) == (NAMES[0], NAMES[1])
    assert open_pack(signed, trusting(1)).signers == ((NAMES[1],), True)
    assert open_pack(signed, trusting(0, 1)).signers == ((NAMES[0], NAMES[1]), True)
    assert not list(signed.parent.glob(".*"))


def test_the_same_pack_and_key_give_the_same_file(tmp_path):
    for name in ("a.edgepack", "b.edgepack"):
        shutil.copy(BUILTIN, tmp_path / name)
        sign_file(tmp_path / name, KEYS[0])
    assert (tmp_path / "a.edgepack").read_bytes() == (tmp_path / "b.edgepack").read_bytes()


def test_what_cannot_be_signed_stays_as_it_was(tmp_path):
    pack = tmp_path / "a.edgepack"
    shutil.copy(BUILTIN, pack)
    (tmp_path / ".a.edgepack.tmp").mkdir()  # where the new one would be written
    with pytest.raises(SetupError, match="cannot write"):
        sign_file(pack, KEYS[0])
    assert pack.read_bytes() == BUILTIN.read_bytes()
    (tmp_path / "link.edgepack").symlink_to(pack)
    with pytest.raises(SetupError, match="symbolic link"):
        sign_file(tmp_path / "link.edgepack", KEYS[0])
    assert pack.read_bytes() == BUILTIN.read_bytes()


def test_what_a_device_would_refuse_is_not_signed(tmp_path):
    files = held(BUILTIN)
    write_pack_zip(tmp_path / "bad.edgepack", {**files, WEIGHTS: files[WEIGHTS][:-1]})
    (tmp_path / "text").write_text("hello")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path in (*before, tmp_path / "missing"):
        with pytest.raises(PackError):
            sign_file(path, KEYS[0])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# Experts


@pytest.fixture
def expert(digits_pack, tmp_path):
    write_expert(tmp_path / "e.safetensors", digits_pack, digits_pack.weights())
    return tmp_path / "e.safetensors"


@pytest.fixture(scope="module")
def signed_expert(digits_pack, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("expert") / "e"
    write_expert(path, digits_pack, digits_pack.weights())
    sign_file(path, KEYS[0])
    return path


def test_an_expert_is_signed_beside_itself(expert, digits_pack):
    before = expert.read_bytes()
    assert read_expert(expert, digits_pack).signers is None
    with pytest.raises(BadInputError, match="not signed"):
        read_expert(expert, digits_pack, trusting(0))
    sign_file(expert, KEYS[1])
    assert sign_file(expert, KEYS[0]) == (NAMES[1], NAMES[0]) and expert.read_bytes() == before
    assert read_expert(expert, digits_pack, trusting(0)).signers == ((NAMES[0],), True)
    assert read_expert(expert, digits_pack).signers == ((NAMES[1], NAMES[0]), False)
    with pytest.raises(BadInputError, match="not by a required key"):
        read_expert(expert, digits_pack, trusting(2))


@given(where=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_an_expert_that_was_changed_is_refused_before_it_is_read(where, bits, digits_pack, signed_expert):
    good = signed_expert.read_bytes()
    content = bytearray(good)
    content[int(where * len(content))] ^= bits
    signed_expert.write_bytes(content)
    with pytest.raises(BadInputError, match="is wrong"):
        read_expert(signed_expert, digits_pack, trusting(0))
    signed_expert.write_bytes(good)
    assert read_expert(signed_expert, digits_pack, trusting(0)).signers == ((NAMES[0],), True)


def test_the_signature_of_another_expert_is_refused(expert, digits_pack, tmp_path):
    sign_file(expert, KEYS[0])
    weights = {name: value + np.float32(1) for name, value in digits_pack.weights().items()}
    write_expert(tmp_path / "f", digits_pack, weights)
    (tmp_path / f"e.safetensors.{SIGNATURES}").rename(tmp_path / f"f.{SIGNATURES}")
    with pytest.raises(BadInputError, match="is wrong"):
        read_expert(tmp_path / "f", digits_pack, trusting(0))
