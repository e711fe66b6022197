"""Sign a pack or an expert in place: whole, or not at all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sel.files import write_durably
from edge_sel.pack.container import open_container, write_zip
from edge_sel.pack.manifest import MANIFEST
from edge_sel.pack.reader import open_pack, refuse_unlisted
from edge_sel.pack.signatures import SIGNATURES, add_signature, read_signatures
from edge_sel.pack.weights import expert_bytes, read_beside, signatures_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign_file(path: Path, key: Ed25519PrivateKey) -> tuple[str, ...]:
    """Add a signature to a pack, or beside an expert; the fingerprints of all that it has then, this one last.

    A pack is opened first, so that nothing is signed that a device would refuse.

    Raises:
        BadInputError: it is neither, or damaged, or a pack with files that its manifest does not list.
        UsageError: it has too many signatures.
        SetupError: it cannot be written; then it is as it was.
    """
    expert = expert_bytes(path)
    signed = _sign_pack(path, key) if expert is None else _sign_expert(path, expert, key)
    return tuple(each.key for each in read_signatures(signed, path))


def _sign_expert(path: Path, content: bytes, key: Ed25519PrivateKey) -> bytes:
    signed = add_signature("expert", content, read_beside(path), key, path)
    write_durably(signatures_of(path), signed)
    return signed


def _sign_pack(path: Path, key: Ed25519PrivateKey) -> bytes:
    pack = open_pack(path)
    with open_container(path) as files:
        refuse_unlisted(files, pack.manifest, path)
    signed = add_signature("pack", pack.files[MANIFEST], pack.files.get(SIGNATURES), key, path)
    if path.is_dir():
        write_durably(path / SIGNATURES, signed)
    else:
        whole = BytesIO()
        write_zip(whole, {**pack.files, SIGNATURES: signed})
        write_durably(path, whole.getvalue())
    return signed
