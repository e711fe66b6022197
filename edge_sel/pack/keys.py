"""Ed25519 keys (RFC 8032) in PEM files, the private one as PKCS #8, the public one as SubjectPublicKeyInfo (RFC 8410).

``cryptography`` is imported only where a key is used, so that a device that checks no signature does without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sel.errors import BadInputError, SetupError
from edge_sel.files import read_regular, write_new

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TrustedKeys = Mapping[str, "Ed25519PublicKey"]
"""Fingerprint -> public key; a signature by any one of them suffices."""
MOST_KEY_BYTES = 1 << 16


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo in DER, 64 hexadecimal digits."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def make_key(private: Path, public: Path) -> str:
    """Write a new pair of keys, the private one readable for its owner only; the fingerprint.

    Raises:
        SetupError: one of the files exists, or cannot be written; nothing is left of the other then.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    told = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    kept = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    write_new(public, told, mode=0o644)
    try:
        write_new(private, kept, mode=0o600)
    except BaseException:
        public.unlink()
        raise
    return fingerprint(key.public_key())


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with.

    Raises:
        BadInputError: the file holds something else, or cannot be read.
        SetupError: ``cryptography`` is not installed.
    """
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read_pem(path)
    if b"PUBLIC KEY" in content:
        raise BadInputError("this key is public, signing takes the private one", where=path)
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise BadInputError(
            "the private key is encrypted", where=path, fix="decrypt it with `openssl pkey -in FILE -out NEW`"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private")
    return key


def read_trusted_keys(paths: Iterable[str | Path]) -> TrustedKeys:
    """The public keys whose signatures count, one a file.

    Raises:
        BadInputError: a file holds something else, or cannot be read.
        SetupError: ``cryptography`` is not installed.
    """
    keys = [_read_public_key(Path(path)) for path in paths]
    return {fingerprint(key): key for key in keys}


def _read_public_key(path: Path) -> Ed25519PublicKey:
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read_pem(path)
    if b"PRIVATE KEY" in content:
        raise BadInputError("this key is private, checking takes the public one", where=path, fix="keep it elsewhere")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public")
    return key


def _read_pem(path: Path) -> bytes:
    try:
        content = read_regular(path, MOST_KEY_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInputError(f"the key cannot be read ({reason})", where=path) from error
    if content.count(b"-----BEGIN ") > 1:  # a second one would be passed over in silence
        raise BadInputError("the file holds several keys", where=path, fix="one key in each file")
    return content


def _no_key(path: Path, kind: str) -> BadInputError:
    return BadInputError(f"not a {kind} Ed25519 key in PEM", where=path, fix="`edge-sel pack keygen` makes a pair")


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise SetupError("pack signatures need cryptography", fix="pip install 'edge-sel[sign]'") from error
