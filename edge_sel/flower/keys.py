"""Keys of a fleet over a network: the server's own authority, its certificate, and what a device hands to the server.

A device has one secret, the Ed25519 key that signs its updates. The key that its SuperNode shows is derived from it.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypedDict

from edge_sel.errors import BadInputError, SetupError
from edge_sel.files import read_regular, write_new
from edge_sel.pack.signatures import fingerprint
from edge_sel.schema import Longest, SchemaError, read_as

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.x509 import Certificate, GeneralName

FORMAT = 1
CARD_SUFFIX = ".device.json"
MOST_BYTES = 1 << 16
YEARS = 10
_NODE = b"edge-sel flower node 1\0"
"""Domain separation: the key of the node is no signature, and tells nothing of the device's key."""


class HomeKeys(NamedTuple):
    """Files in a server's folder."""

    authority: Path
    """Certificate that devices check the server's with; ``authority_key`` stays with the server."""
    authority_key: Path
    certificate: Path
    key: Path
    secret: Path
    """That the process which runs the rounds shows to the SuperLink."""


class Card(NamedTuple):
    """What a server knows of a device."""

    device: str
    """Fingerprint of the key that signs its updates."""
    signs: Ed25519PublicKey
    node: bytes
    """Public key of its SuperNode, PEM: as Flower has it."""


class _Card(TypedDict):
    format: int
    signs: Annotated[str, Longest(4000)]
    node: Annotated[str, Longest(4000)]


def keys_of(home: Path) -> HomeKeys:
    """Where the files of a server's folder are."""
    return HomeKeys(
        home / "ca.pem", home / "ca.key.pem", home / "server.pem", home / "server.key.pem", home / "runtime.secret"
    )


def make_home(home: Path, host: str) -> HomeKeys:
    """Make what a server's folder lacks: an authority of its own, a certificate for ``host`` and loopback, a secret.

    Args:
        home: made for its owner alone where it is missing.
        host: name or address by which devices reach the server.

    Raises:
        SetupError: it cannot be written, or was made for another host.
        BadInputError: a file cannot be read.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    found = keys_of(home)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SetupError(f"the fleet's folder cannot be made ({error.strerror})", where=home) from error
    if not found.authority_key.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        found.authority.unlink(missing_ok=True)  # of a start that was killed between the two
        write_new(found.authority, _pem(_certificate("edge-sel fleet", key, None, ())), mode=0o644)
        write_new(found.authority_key, _private_pem(key), mode=0o600)
    if not found.key.exists():
        authority, authority_key = _read_authority(found)
        key = ec.generate_private_key(ec.SECP256R1())
        names = (host, "localhost", "127.0.0.1")
        found.certificate.unlink(missing_ok=True)
        made = _certificate(host, key, (authority, authority_key), names)
        write_new(found.certificate, _pem(made), mode=0o644)
        write_new(found.key, _private_pem(key), mode=0o600)
    elif not _is_for(found.certificate, host):
        fix = f"remove {found.certificate.name} and {found.key.name} there to make a new one"
        raise SetupError(f"the certificate is not for {host}", where=found.certificate, fix=fix)
    if not found.secret.exists():
        write_new(found.secret, secrets.token_hex(32).encode(), mode=0o600)
    return found


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _read_authority(found: HomeKeys) -> tuple[Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_regular(found.authority_key, MOST_BYTES), None)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise ValueError("another kind of key")
        return x509.load_pem_x509_certificate(read_regular(found.authority, MOST_BYTES)), key
    except (OSError, ValueError, TypeError) as error:
        raise BadInputError("the authority of the fleet cannot be read", where=f"{found.authority}: {error}") from error


def _certificate(
    name: str, key: EllipticCurvePrivateKey, by: tuple[Certificate, EllipticCurvePrivateKey] | None,
    names: tuple[str, ...],
) -> Certificate:  # fmt: skip
    """Signed by an authority, or by itself and then one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    issuer, signer = (subject, key) if by is None else (by[0].subject, by[1])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=by is None, crl_sign=by is None, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start).not_valid_after(start + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=0 if by is None else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )  # fmt: skip
    if by is not None:
        made = made.add_extension(x509.SubjectAlternativeName([_general(each) for each in dict.fromkeys(names)]), False)
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    return made.sign(signer, hashes.SHA256())


def _general(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _is_for(path: Path, host: str) -> bool:
    from cryptography import x509

    try:
        read = x509.load_pem_x509_certificate(read_regular(path, MOST_BYTES))
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise BadInputError("the server's certificate cannot be read", where=f"{path}: {error}") from error
    return _general(host) in list(names)


# Devices


def node_key(device: Ed25519PrivateKey) -> EllipticCurvePrivateKey:
    """The key that the device's SuperNode shows: the same each time."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    expanded = HKDF(hashes.SHA256(), 48, None, _NODE).derive(device.private_bytes_raw())
    return ec.derive_private_key(int.from_bytes(expanded, "big") % (order - 1) + 1, ec.SECP256R1())


def node_file(device: Ed25519PrivateKey) -> bytes:
    """The same as a file that ``flower-supernode`` reads."""
    from cryptography.hazmat.primitives import serialization as form

    return node_key(device).private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())


def _public_pem(key: Ed25519PublicKey | EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def card_of(device: Ed25519PrivateKey) -> bytes:
    """The file that a device hands to the server: public keys only."""
    content: _Card = {
        "format": FORMAT, "signs": _public_pem(device.public_key()), "node": _public_pem(node_key(device).public_key()),
    }  # fmt: skip
    return (json.dumps(content, indent=1) + "\n").encode()


def read_cards(paths: tuple[Path, ...]) -> dict[bytes, Card]:
    """Node's public key -> the device, of files or folders of them.

    Raises:
        BadInputError: one cannot be read, or there are none.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob(f"*{CARD_SUFFIX}")) if path.is_dir() else [path]
    found: dict[bytes, Card] = {}
    for path in files:
        card = _read_card(path)
        if any(card.device == other.device for other in found.values()):
            raise BadInputError("two files of one device", where=path, fix="remove one")
        found[card.node] = card
    if not found:
        raise BadInputError(
            "there is no device", where=", ".join(map(str, paths)),
            fix="make its file on the device with `edge-sel fleet enrol`",
        )  # fmt: skip
    return found


def _read_card(path: Path) -> Card:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        content: _Card = read_as(_Card, read_regular(path, MOST_BYTES))
        if content["format"] != FORMAT:
            raise ValueError("it is of another format")
        signs, node = (load_pem_public_key(content[name].encode()) for name in ("signs", "node"))
        if not isinstance(signs, Ed25519PublicKey) or not isinstance(node, EllipticCurvePublicKey):
            raise ValueError("its keys are of other kinds")
        if not isinstance(node.curve, SECP256R1):
            raise ValueError("its node has a key on another curve")
    except (OSError, ValueError, SchemaError, UnsupportedAlgorithm) as error:
        raise BadInputError("the file of a device cannot be read", where=f"{path}: {error}") from error
    return Card(fingerprint(signs), signs, _public_pem(node).encode())
