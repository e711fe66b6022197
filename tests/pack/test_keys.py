"""Key files: standard PEM, the private one for its owner alone, nothing overwritten, anything else refused."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sel.errors import BadInputError, SetupError
from edge_sel.pack.signatures import fingerprint, make_key, read_private_key, read_trusted_keys

# RFC 8032, section 7.1, test 1, and its public key in PEM as RFC 8410 writes one.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


@pytest.fixture
def pair(tmp_path):
    make_key(tmp_path / "a.key.pem", tmp_path / "a.pub.pem")
    return tmp_path / "a.key.pem", tmp_path / "a.pub.pem"


def private_pem(key, password=None):
    hidden = form.NoEncryption() if password is None else form.BestAvailableEncryption(password)
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, hidden)


def public_pem(key):
    return key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


def test_a_pair_belongs_together(pair):
    private, public = pair
    (name,) = read_trusted_keys([public])
    assert fingerprint(read_private_key(private).public_key()) == name
    assert private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert public.read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")


def test_keys_are_those_of_rfc_8032(tmp_path):
    key = Ed25519PrivateKey.from_private_bytes(SEED)
    (tmp_path / "k").write_bytes(private_pem(key))
    found = read_private_key(tmp_path / "k")
    raw = found.public_key().public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)
    assert raw == PUBLIC and found.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_the_private_key_is_its_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        make_key(tmp_path / "private", tmp_path / "public")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644


@pytest.mark.parametrize("taken", ["private", "public"])
@pytest.mark.parametrize("kind", ["file", "link", "link to nothing", "folder"])
def test_nothing_is_overwritten_and_no_half_of_a_pair_is_left(taken, kind, tmp_path):
    path, mine = tmp_path / "keys" / taken, tmp_path / "mine"
    path.parent.mkdir()
    mine.write_text("mine")
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(mine if kind == "link" else tmp_path / "nothing")
    with pytest.raises(SetupError, match="not overwritten"):
        make_key(tmp_path / "keys" / "private", tmp_path / "keys" / "public")
    assert [child.name for child in path.parent.iterdir()] == [taken]
    assert mine.read_text() == "mine" and not (tmp_path / "nothing").exists()
    assert kind != "file" or path.read_text() == "mine"


def test_openssl_reads_the_keys(pair):
    """An implementation that is not ours to sign with, where there is one."""
    private, public = pair
    try:
        result = subprocess.run(
            ["openssl", "pkey", "-in", private, "-pubout"], capture_output=True, check=False, timeout=20
        )
    except FileNotFoundError:
        pytest.skip("no openssl here")
    if b"unsupported" in result.stderr.lower():
        pytest.skip("an openssl without Ed25519")
    assert result.stdout == public.read_bytes()


OTHERS = {
    "RSA": rsa.generate_private_key(65537, 2048),
    "ECDSA": ec.generate_private_key(ec.SECP256R1()),
    "Ed448": ed448.Ed448PrivateKey.generate(),
}
KEY = Ed25519PrivateKey.from_private_bytes(SEED)


def cases():
    for name, other in OTHERS.items():
        yield name, private_pem(other), public_pem(other), "not a"
    yield "the other half", public_pem(KEY), private_pem(KEY), "this key is"
    yield "both", private_pem(KEY) + public_pem(KEY), public_pem(KEY) + private_pem(KEY), "several keys"
    yield "two", 2 * private_pem(KEY), 2 * public_pem(KEY), "several keys"
    yield "empty", b"", b"", "not a"
    yield "cut", private_pem(KEY)[:60], public_pem(KEY)[:60], "not a"
    yield "DER", SEED, PUBLIC, "not a"
    yield "large", b"a" * 100_000, b"a" * 100_000, "cannot be read"


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_what_is_no_key_is_refused(case, tmp_path):
    _, private, public, word = case
    for content, read in ((private, read_private_key), (public, lambda path: read_trusted_keys([path]))):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(BadInputError, match=word) as caught:
            read(tmp_path / "key")
        line = str(caught.value)
        assert "\n" not in line and str(tmp_path / "key") in line and SEED.hex() not in line


def test_an_encrypted_key_says_how_to_decrypt_it(tmp_path):
    (tmp_path / "key").write_bytes(private_pem(KEY, b"secret"))
    with pytest.raises(BadInputError, match=r"encrypted.*openssl"):
        read_private_key(tmp_path / "key")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path, tmp_path / "missing", "a\0b"):
        with pytest.raises(BadInputError, match="cannot be read"):
            read_trusted_keys([path])
