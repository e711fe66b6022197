"""Keys of a fleet: the server's authority and certificate, the node's key, what a device hands over."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import threading

import pytest

pytest.importorskip("cryptography", reason="needs edge-sel[sign]")
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from edge_sel.errors import BadInputError, SetupError
from edge_sel.flower import keys
from edge_sel.pack.signatures import fingerprint, make_key, read_private_key


@pytest.fixture
def device(tmp_path):
    make_key(tmp_path / "cam.key", tmp_path / "cam.pub")
    return read_private_key(tmp_path / "cam.key")


def test_a_home_is_made_once_and_secrets_are_for_their_owner(tmp_path):
    found = keys.make_home(tmp_path / "home", "fleet.example")
    content = [path.read_bytes() for path in found]
    assert keys.make_home(tmp_path / "home", "fleet.example") == found
    assert [path.read_bytes() for path in found] == content
    for path in (found.authority_key, found.key, found.secret):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_start_that_was_killed_between_two_files_is_made_good(tmp_path):
    found = keys.make_home(tmp_path, "127.0.0.1")
    found.authority_key.unlink()
    found.key.unlink()
    keys.make_home(tmp_path, "127.0.0.1")
    shake_hands(found, found.authority, "127.0.0.1")


@pytest.mark.parametrize("host", ["fleet.example", "192.0.2.7", "2001:db8::1"])
def test_the_certificate_is_good_for_the_host_and_loopback(tmp_path, host):
    found = keys.make_home(tmp_path, host)
    for name in (host, "127.0.0.1", "localhost"):
        shake_hands(found, found.authority, name)
    with pytest.raises(ssl.SSLError):
        shake_hands(found, found.authority, "other.example")


def test_another_authority_is_not_believed(tmp_path):
    found, other = keys.make_home(tmp_path / "a", "a.example"), keys.make_home(tmp_path / "b", "a.example")
    with pytest.raises(ssl.SSLError):
        shake_hands(found, other.authority, "a.example")


def test_a_home_of_another_host_is_told(tmp_path):
    keys.make_home(tmp_path, "a.example")
    with pytest.raises(SetupError, match=r"not for b.example"):
        keys.make_home(tmp_path, "b.example")


def shake_hands(found, authority, name):
    """TLS between a server with the home's certificate and a client that trusts an authority."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(found.certificate, found.key)
    ours, theirs = socket.socketpair()

    def answer():
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with ours:
            ssl.create_default_context(cafile=str(authority)).wrap_socket(ours, server_hostname=name).close()
    finally:
        thread.join()


def test_the_key_of_the_node_follows_from_the_device_s(device, tmp_path):
    first, again = keys.node_key(device).private_numbers(), keys.node_key(device).private_numbers()
    assert first.private_value == again.private_value
    read = load_ssh_private_key(keys.node_file(device), None)
    assert isinstance(read.curve, SECP256R1) and read.private_numbers().private_value == first.private_value
    make_key(tmp_path / "other.key", tmp_path / "other.pub")
    other = keys.node_key(read_private_key(tmp_path / "other.key"))
    assert other.private_numbers().private_value != first.private_value


def test_a_card_has_public_keys_only(device, tmp_path):
    path = tmp_path / "cam.device.json"
    path.write_bytes(keys.card_of(device))
    assert "PRIVATE" not in path.read_text()
    (card,) = keys.read_cards((tmp_path,)).values()
    assert card.device == fingerprint(device.public_key())
    assert keys.read_cards((path,)).keys() == {card.node}


@pytest.mark.parametrize("change", ["format", "signs", "node", "swap", "json", "long"])
def test_a_bad_card_is_told_in_one_line(device, tmp_path, change):
    told = json.loads(keys.card_of(device))
    if change == "format":
        told["format"] = 2
    elif change == "swap":
        told["signs"], told["node"] = told["node"], told["signs"]
    elif change == "long":
        told["node"] *= 99
    elif change != "json":
        told[change] = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    path = tmp_path / "cam.device.json"
    path.write_text("{" if change == "json" else json.dumps(told))
    with pytest.raises(BadInputError) as error:
        keys.read_cards((path,))
    assert "\n" not in str(error.value)


def test_no_device_and_a_device_twice_are_told(device, tmp_path):
    with pytest.raises(BadInputError, match="no device"):
        keys.read_cards((tmp_path,))
    for name in ("a", "b"):
        (tmp_path / f"{name}.device.json").write_bytes(keys.card_of(device))
    with pytest.raises(BadInputError, match="two files"):
        keys.read_cards((tmp_path,))
