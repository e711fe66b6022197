"""Signatures of packs and experts: Ed25519 (RFC 8032) over a prefix of its own for each kind and the exact bytes.

What is signed of a pack is ``manifest.json``, which has the SHA-256 of every other file; of an expert, its whole file.
The signatures lie in a file of their own:

    {"format": 1, "signatures": [{"key": SHA-256 of the public key, 64 digits, "signature": 64 bytes in base64}, …]}

Keys are PEM files, the private one PKCS #8, the public one SubjectPublicKeyInfo (RFC 8410). ``cryptography`` is
imported only where a key is used, so that a device that checks no signature does without it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edge_sel.errors import BadInputError, PackError, SetupError, UsageError
from edge_sel.files import read_regular, write_new
from edge_sel.schema import parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TrustedKeys = Mapping[str, "Ed25519PublicKey"]
"""Fingerprint -> public key; a signature by any one of them suffices."""
MOST_KEY_BYTES = 1 << 16
SIGNATURES = "signatures.json"
MOST_SIGNATURES, MOST_SIGNATURES_BYTES = 16, 16 << 10
FORMAT = 1

SignedKind = Literal["pack", "expert", "update"]
_PREFIX: dict[SignedKind, bytes] = {
    "pack": b"edge-sel pack manifest 1\0", "expert": b"edge-sel expert 1\0", "update": b"edge-sel fleet update 1\0",
}  # fmt: skip
"""Domain separation: a signature of the one is none of the other, nor of anything else that the key signs."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_BYTES = 64
"""Of an Ed25519 signature."""


class KeySignature(NamedTuple):
    """One signature, not checked by itself."""

    key: str
    """Fingerprint of the public key."""
    value: bytes


class Signers(NamedTuple):
    """Who signed."""

    fingerprints: tuple[str, ...]
    """Of their public keys: those that are trusted if ``checked``, else all that are named."""
    checked: bool

    def to_json(self) -> dict[str, Any]:
        """As ``run.json`` holds it."""
        return {"fingerprints": list(self.fingerprints), "checked": self.checked}


def find_signers(
    kind: SignedKind, message: bytes, signatures: bytes | None, trusted: TrustedKeys | None, where: object
) -> Signers | None:
    """Who signed; None where nobody did and nobody is asked for.

    Args:
        kind: what ``message`` is.
        message: the exact bytes that are signed.
        signatures: content of the signatures' file; None without one.
        trusted: keys of which one must have signed; None for no check.
        where: for messages.

    Raises:
        PackError: the signatures cannot be read, or none of them is a good one by a trusted key.
    """
    found = () if signatures is None else read_signatures(signatures, where)
    if trusted is None:
        return Signers(tuple(each.key for each in found), checked=False) if found else None
    if not found:
        raise PackError(
            f"the {kind} is not signed, and a signature is required", where=where,
            fix="its maker signs it with `edge-sel pack sign`",
        )  # fmt: skip
    known = [each for each in found if each.key in trusted]
    if not known:
        raise PackError(
            f"the {kind} is signed by {_names(found)}, not by a required key", where=where,
            fix="do not use it, get it from the owner of a required key",
        )  # fmt: skip
    good = tuple(each.key for each in known if _is_good(kind, message, each, trusted))
    if not good:
        what = f"the signature by {_names(known)} is wrong: this {kind} is not what was signed"
        raise PackError(what, where=where, fix="do not use it, fetch it again")
    return Signers(good, checked=True)


def add_signature(
    kind: SignedKind, message: bytes, signatures: bytes | None, key: Ed25519PrivateKey, where: object
) -> bytes:
    """The signatures' file with one by this key, in place of an earlier one by it.

    Raises:
        PackError: the signatures that are there cannot be read.
        UsageError: there are too many.
    """
    name = fingerprint(key.public_key())
    others = () if signatures is None else read_signatures(signatures, where)
    held = [*(each for each in others if each.key != name), KeySignature(name, key.sign(_PREFIX[kind] + message))]
    if len(held) > MOST_SIGNATURES:
        raise UsageError(f"it has {MOST_SIGNATURES} signatures already", where=where, fix=f"make the {kind} again")
    entries = [{"key": each.key, "signature": base64.b64encode(each.value).decode()} for each in held]
    return (json.dumps({"format": FORMAT, "signatures": entries}, indent=1) + "\n").encode()


def read_signatures(content: bytes, where: object) -> tuple[KeySignature, ...]:
    """The signatures, each by another key; none is checked.

    Raises:
        PackError: it is something else, or of a newer format.
    """
    try:
        body = parse_json(content)
        if body["format"] != FORMAT or type(body["format"]) is not int:
            what = f"{SIGNATURES} has format {str(body['format'])[:20]}, this edge-sel reads {FORMAT}"
            raise PackError(what, where=where, fix="pip install -U edge-sel")
        if body.keys() != {"format", "signatures"} or not isinstance(body["signatures"], list):
            raise ValueError("other keys")
        found = tuple(_read(entry) for entry in body["signatures"])
        if not 1 <= len({each.key for each in found}) == len(found) <= MOST_SIGNATURES:
            raise ValueError("none, too many, or two by one key")
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PackError(f"{SIGNATURES} is damaged", where=where, fix="fetch it again") from error


def _read(entry: dict[str, Any]) -> KeySignature:
    if entry.keys() != {"key", "signature"} or not _FINGERPRINT.fullmatch(entry["key"]):
        raise ValueError("no signature")
    value = base64.b64decode(entry["signature"], validate=True)
    if len(value) != _BYTES:
        raise ValueError("no signature of Ed25519")
    return KeySignature(entry["key"], value)


def _is_good(kind: SignedKind, message: bytes, signature: KeySignature, trusted: TrustedKeys) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        trusted[signature.key].verify(signature.value, _PREFIX[kind] + message)
    except InvalidSignature:
        return False
    return True


def _names(signatures: Sequence[KeySignature]) -> str:
    return " and ".join(each.key for each in signatures)


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
    pem = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    kept = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    write_new(public, pem, mode=0o644)
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
    key: Ed25519PrivateKey = _read_key(path, "private")
    return key


def read_trusted_keys(paths: Iterable[str | Path]) -> TrustedKeys:
    """The public keys whose signatures count, one a file.

    Raises:
        BadInputError: a file holds something else, or cannot be read.
        SetupError: ``cryptography`` is not installed.
    """
    keys = [_read_key(Path(path), "public") for path in paths]
    return {fingerprint(key): key for key in keys}


def _read_key(path: Path, kind: Literal["private", "public"]) -> Any:
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    try:
        content = read_regular(path, MOST_KEY_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInputError(f"the key cannot be read ({reason})", where=path) from error
    if content.count(b"-----BEGIN ") > 1:  # a second one would be passed over in silence
        raise BadInputError("the file holds several keys", where=path, fix="one key in each file")
    key: object = None
    try:
        if kind == "private":
            if b"PUBLIC KEY" in content:
                raise BadInputError("this key is public, signing takes the private one", where=path)
            key = serialization.load_pem_private_key(content, password=None)
        else:
            if b"PRIVATE KEY" in content:
                what = "this key is private, checking takes the public one"
                raise BadInputError(what, where=path, fix="keep it elsewhere")
            key = serialization.load_pem_public_key(content)
    except TypeError as error:
        fix = "decrypt it with `openssl pkey -in FILE -out NEW`"
        raise BadInputError("the private key is encrypted", where=path, fix=fix) from error
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey if kind == "private" else ed25519.Ed25519PublicKey):
        fix = "`edge-sel pack keygen` makes a pair"
        raise BadInputError(f"not a {kind} Ed25519 key in PEM", where=path, fix=fix)
    return key


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise SetupError("pack signatures need cryptography", fix="pip install 'edge-sel[sign]'") from error
