"""A round between a server and devices of which only the network is missing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="needs edge-sel[sign]")
from edge_sel.data.builtin import load_relit
from edge_sel.data.shifts import write_folder
from edge_sel.errors import BadInputError, SetupError
from edge_sel.flower import client_app, server_app
from edge_sel.flower import round as round_
from edge_sel.flower.client_app import Device, answer
from edge_sel.flower.keys import Card, card_of, read_cards
from edge_sel.flower.messages import FORMAT, Request, read_reply, read_request, request_bytes
from edge_sel.flower.round import Round, RoundOptions, changed_weights, finish
from edge_sel.pack.reader import builtin_pack, open_pack
from edge_sel.pack.signatures import make_key, read_private_key, read_trusted_keys

COUNT = 3


class Connection(NamedTuple):
    """As ``runtime.Connection``, which needs Flower."""

    node: int
    key: bytes
    since: str


class Mailbox:
    """In the place of Flower: hands each message to its device at once."""

    def __init__(self, members: dict[int, tuple[Card, Callable[[bytes], bytes | None]]]) -> None:
        self.members, self.sent, self.replies, self.count = members, [], {}, 0
        self.since = {number: "t0" for number in members}

    def present(self):
        return [Connection(number, card.node, self.since[number]) for number, (card, _) in self.members.items()]

    def send(self, node, message, seconds):
        self.sent.append(node)
        self.count += 1
        reply = self.members[node][1](message)
        if reply is not None:
            self.replies[str(self.count)] = reply
        return str(self.count)

    def fetch(self, numbers):
        return [(number, self.replies.pop(number), "") for number in numbers if number in self.replies]


@cache
def field():
    return load_relit("field")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pack, and devices with keys and images."""
    folder: Path = tmp_path_factory.mktemp("fleet")
    builtin_pack().save(folder / "model.edgepack")
    for number in range(COUNT):
        make_key(folder / f"{number}.key", folder / f"{number}.pub")
        write_folder(field().subset(np.arange(number * 60, number * 60 + 60)), folder / f"images{number}")
    return folder


def device(place: Path, number: int, home: Path, **changes) -> Device:
    (home / str(number)).mkdir(parents=True, exist_ok=True)
    key = read_private_key(place / f"{number}.key")
    made = Device(place / "model.edgepack", place / f"images{number}", home / str(number), key, threads=1, environ={})
    return made._replace(**changes)


def cards_of(devices: list[Device], folder: Path) -> dict[bytes, Card]:
    for number, each in enumerate(devices):
        (folder / f"{number}.device.json").write_bytes(card_of(each.key))
    return read_cards((folder,))


def fleet(place, tmp_path, monkeypatch, **changes):
    """Devices, their cards, a mailbox to them."""
    monkeypatch.setattr(round_, "POLL_S", 0.01)
    monkeypatch.setattr(round_, "SETTLE_S", 0.0)
    devices = [device(place, number, tmp_path, **changes) for number in range(COUNT)]
    cards = cards_of(devices, tmp_path)
    by_name = {card.device: card for card in cards.values()}
    members = {}
    for number, each in enumerate(devices):
        name = next(iter(read_trusted_keys([place / f"{number}.pub"])))
        members[number] = (by_name[name], lambda message, each=each: answer(each, message, lambda line: None))
    return devices, cards, Mailbox(members)


def folder_of(place, tmp_path, cards, name="r1"):
    from edge_sel.fleet.rounds import RoundFolder

    trusted = {card.device: card.signs for card in cards.values()}
    return RoundFolder(tmp_path / "rounds", open_pack(place / "model.edgepack"), name, trusted)


OPTIONS = RoundOptions(timeout_s=20, min_devices=2, threads=1)


def test_a_round_from_the_first_message_to_a_new_pack(place, tmp_path, monkeypatch):
    _, cards, mailbox = fleet(place, tmp_path, monkeypatch)
    told = []
    with folder_of(place, tmp_path, cards) as folder:
        before = folder.pack.digest
        work = Round(folder, cards, mailbox, OPTIONS, told.append)
        finish(folder, work, OPTIONS, None, told.append)
        assert folder.state == "published" and folder.pack.digest != before
        assert len(work.votes) == COUNT and not work.declined and not work.refused
    assert sorted(mailbox.sent) == sorted([*range(COUNT)] * 3)  # each was asked for an update, to judge, and to install


def test_devices_decline_in_words_and_too_few_end_no_round(place, tmp_path, monkeypatch):
    other = tmp_path / "other.edgepack"
    pack = builtin_pack()
    weights = {name: value * np.float32(1.01) for name, value in pack.weights().items()}
    pack.with_weights(weights, pack.manifest.model.classes, "other").save(other)
    devices, cards, mailbox = fleet(place, tmp_path, monkeypatch)
    for number in (0, 1):
        card, _ = mailbox.members[number]
        changed = devices[number]._replace(pack=other)
        mailbox.members[number] = (card, lambda message, changed=changed: answer(changed, message, lambda line: None))
    options = OPTIONS._replace(timeout_s=5.0)
    with folder_of(place, tmp_path, cards) as folder:
        work = Round(folder, cards, mailbox, options, lambda line: None)
        with pytest.raises(BadInputError, match="1 devices took part, 2 are needed"):
            finish(folder, work, options, None, lambda line: None)
        assert folder.state == "open" and len(work.declined) == 2
        assert all("another pack" in why for why in work.declined.values())
    with folder_of(place, tmp_path, cards, "r2") as folder:  # the server is started again
        assert folder.name == "r1" and len(folder.updates()[0]) == 1
        mailbox.sent.clear()
        for number in (0, 1):
            card, _ = mailbox.members[number]
            mailbox.members[number] = (
                card,
                lambda message, one=devices[number]: answer(one, message, lambda line: None),
            )
        finish(folder, Round(folder, cards, mailbox, OPTIONS, lambda line: None), OPTIONS, None, lambda line: None)
        assert (
            folder.state == "published" and mailbox.sent.count(2) == 2
        )  # the third was only asked to judge, and to install


def test_devices_have_what_was_published_and_one_that_missed_it_gets_it_in_the_next_round(place, tmp_path, monkeypatch):
    devices, cards, mailbox = fleet(place, tmp_path, monkeypatch)
    card, good = mailbox.members[0]
    tasks: list[str] = []

    def deaf_to_the_pack(message):
        tasks.append(read_request(message)[0]["task"])
        return None if tasks[-1] == "install" else good(message)

    mailbox.members[0] = (card, deaf_to_the_pack)
    monkeypatch.setattr(round_, "AGAIN_S", 0.1)
    options = OPTIONS._replace(timeout_s=3.0)
    with folder_of(place, tmp_path, cards) as folder:
        first, told = folder.pack, []
        finish(folder, Round(folder, cards, mailbox, options, told.append), options, None, told.append)
        second = folder.pack
    (devices[0].home / client_app.PACK).write_bytes(b"of another fleet, and damaged")
    assert "2 devices have the new pack" in told and tasks == ["update", "judge", "install"]
    assert all(open_pack(each.home / client_app.PACK).files == second.files for each in devices[1:])
    mailbox.members[0] = (card, good)
    with folder_of(place, tmp_path, cards, "r2") as folder:
        assert folder.known(first.digest).digest == first.digest and folder.known("0" * 16) is None
        work, told = Round(folder, cards, mailbox, OPTIONS, lambda line: told.append(line)), []
        work.collect()
        assert len(folder.updates()[0]) == COUNT and not work.declined and not work.refused
    assert sum("it is sent what is new" in line for line in told) == 1
    assert open_pack(devices[0].home / client_app.PACK).digest == second.digest


def test_a_pack_that_differs_by_too_much_is_not_sent_and_that_is_told(place, tmp_path, monkeypatch):
    devices, cards, mailbox = fleet(place, tmp_path, monkeypatch)
    monkeypatch.setattr(round_, "MOST_PATCH", 1000)
    told: list[str] = []
    with folder_of(place, tmp_path, cards) as folder:
        finish(folder, Round(folder, cards, mailbox, OPTIONS, told.append), OPTIONS, None, told.append)
        assert folder.state == "published"
    assert any("copy it to the devices" in line for line in told) and "0 devices have the new pack" in told
    assert not any((each.home / client_app.PACK).exists() for each in devices)
    with folder_of(place, tmp_path, cards, "r2") as folder:
        work = Round(folder, cards, mailbox, OPTIONS._replace(timeout_s=1.0), told.append)
        work.collect()
    assert len(work.declined) == COUNT and all("another pack" in why for why in work.declined.values())


def test_a_pack_without_the_signature_that_a_device_requires_is_not_installed(place, tmp_path, monkeypatch):
    from edge_sel.pack.sign import sign_file

    signed = tmp_path / "signed.edgepack"
    builtin_pack().save(signed)
    sign_file(signed, read_private_key(place / "0.key"))
    trusted = read_trusted_keys([place / "0.pub"])
    devices, cards, mailbox = fleet(place, tmp_path, monkeypatch, pack=signed, trusted=trusted)
    from edge_sel.fleet.rounds import RoundFolder

    devices_keys = {card.device: card.signs for card in cards.values()}
    for key, wrote in ((None, False), (read_private_key(place / "0.key"), True)):
        told: list[str] = []
        with RoundFolder(tmp_path / f"rounds{wrote}", open_pack(signed), f"r{wrote}", devices_keys) as folder:
            work = Round(folder, cards, mailbox, OPTIONS, told.append)
            finish(folder, work, OPTIONS, key, told.append)
            assert folder.state == "published"
        assert any("signed" in why for why in work.declined.values()) != wrote
        assert all((each.home / client_app.PACK).exists() == wrote for each in devices)


def test_garbage_forgeries_and_silence_do_not_stop_the_others(place, tmp_path, monkeypatch):
    _, cards, mailbox = fleet(place, tmp_path, monkeypatch)
    answers = [members[1] for members in mailbox.members.values()]
    card = mailbox.members[1][0]
    mailbox.members[1] = (card, answers[0])  # an update that the first device signed
    options = OPTIONS._replace(min_devices=1)
    with folder_of(place, tmp_path, cards) as folder:
        work = Round(folder, cards, mailbox, options, lambda line: None)
        work.collect()
        assert len(folder.updates()[0]) == 2
    mailbox.members[2] = (mailbox.members[2][0], lambda message: b"garbage")
    mailbox.members[0] = (mailbox.members[0][0], lambda message: None)
    with folder_of(place, tmp_path, cards) as folder:
        assert folder.number == 1


def test_a_device_that_was_started_again_is_asked_again(place, tmp_path, monkeypatch):
    _, cards, mailbox = fleet(place, tmp_path, monkeypatch)
    card, good = mailbox.members[0]
    mailbox.members[0] = (card, lambda message: None)  # it dies with the message

    def restarted(numbers, fetch=mailbox.fetch):
        if mailbox.sent.count(0) == 1:
            mailbox.since[0], mailbox.members[0] = "t1", (card, good)
        return fetch(numbers)

    mailbox.fetch = restarted
    with folder_of(place, tmp_path, cards) as folder:
        Round(folder, cards, mailbox, OPTIONS._replace(min_devices=3), lambda line: None).collect()
        assert mailbox.sent.count(0) == 2 and len(folder.updates()[0]) == 3


def test_who_does_not_answer_is_waited_for_no_longer_than_the_round_lasts(place, tmp_path, monkeypatch):
    _, cards, mailbox = fleet(place, tmp_path, monkeypatch)
    mailbox.members[0] = (mailbox.members[0][0], lambda message: None)
    told = []
    with folder_of(place, tmp_path, cards) as folder:
        Round(folder, cards, mailbox, OPTIONS._replace(timeout_s=4.0), told.append).collect()
        assert len(folder.updates()[0]) == 2
    assert any("no reply in time" in line for line in told)


def test_a_run_that_flower_gives_up_is_followed_by_another_in_the_same_round(place, tmp_path, monkeypatch):
    class LostError(SetupError):
        """As ``runtime.SuperLinkError``."""

    _, cards, mailbox = fleet(place, tmp_path, monkeypatch)
    good, runs, lines = mailbox.fetch, [], []

    def lose_once(numbers):
        found = good(numbers)
        if len(runs) == 1:
            raise LostError("away")
        return found

    @contextmanager
    def run():
        runs.append(1)
        yield mailbox

    mailbox.fetch = lose_once
    running = SimpleNamespace(gate=SimpleNamespace(received=0, sent=0), lost=LostError, run=run)
    with folder_of(place, tmp_path, cards) as folder:
        ended = server_app._one_round(running, folder, cards, OPTIONS, None, lines.append)
    assert (ended.state, ended.updates, len(runs)) == ("published", COUNT, 2)
    assert any("another run" in line for line in lines)


# A device alone


def request(place, **changes) -> Request:
    pack = open_pack(place / "model.edgepack")
    made: Request = {
        "format": FORMAT, "task": "update", "round": "r1", "pack": pack.digest, "kind": "statistics", "plan": "last",
        "seconds": 60.0, "classes": [], "base": "",
    }  # fmt: skip
    return {**made, **changes}


def ask(one: Device, asked: Request, tensors=None):
    return read_reply(answer(one, request_bytes(asked, tensors), lambda line: None), asked)


def test_the_update_of_a_round_is_the_same_each_time(place, tmp_path):
    one = device(place, 0, tmp_path, privacy=(8.0, 1e-5))
    first, again = (ask(one, request(place)) for _ in range(2))
    assert first.content == again.content and first.signature == again.signature is not None
    assert ask(one, request(place, round="r2")).content != first.content


def test_a_device_that_was_cut_off_while_it_wrote_makes_another_one(place, tmp_path):
    one = device(place, 0, tmp_path)
    (one.home / client_app.ANSWER).write_bytes(b"\0" * 100)
    assert ask(one, request(place)).content


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"environ": {"EDGE_SEL_QUIET_HOURS": "00:00-23:59"}}, "quiet"),
        ({"data": Path("/nowhere")}, "nowhere"),
        ({"pack": Path("/nowhere.edgepack")}, "nowhere"),
    ],
)
def test_what_a_device_cannot_or_must_not_do_is_declined(place, tmp_path, changes, why):
    found = ask(device(place, 0, tmp_path, **changes), request(place))
    assert why in found.header["declined"] and "\n" not in found.header["declined"] and not found.content


def test_a_pack_that_is_not_signed_as_required_is_not_used(place, tmp_path):
    one = device(place, 0, tmp_path, trusted=read_trusted_keys([place / "0.pub"]))
    assert "not signed" in ask(one, request(place)).header["declined"]


def test_a_candidate_of_another_shape_is_declined(place, tmp_path):
    wrong = {next(iter(builtin_pack().weights())): np.zeros((1, 2), np.float32)}
    found = ask(device(place, 0, tmp_path), request(place, task="judge", classes=list("0123456789")), wrong)
    assert found.header["declined"] and found.header["counts"] is None


def test_what_is_no_request_is_an_error(place, tmp_path):
    with pytest.raises(ValueError, match="request"):
        answer(device(place, 0, tmp_path), b"garbage", lambda line: None)


def test_only_what_differs_travels():
    pack = builtin_pack()
    weights = pack.weights()
    name = min(weights, key=lambda name: weights[name].size)
    other = pack.with_weights({**weights, name: weights[name] + 1}, pack.manifest.model.classes, "x")
    assert changed_weights(pack, other).keys() == {name} and not changed_weights(pack, pack)


def test_a_round_has_one_candidate_and_its_counts_are_the_same_each_time(place, tmp_path):
    one, pack = device(place, 0, tmp_path), open_pack(place / "model.edgepack")
    weights = pack.weights()
    name = min(weights, key=lambda name: weights[name].size)
    asked = request(place, task="judge", classes=list(pack.manifest.model.classes))
    first = ask(one, asked, {name: weights[name]})
    again = ask(one, {**asked, "seconds": 1.0}, {name: weights[name]})
    assert first.header["counts"] == again.header["counts"] is not None
    assert first.header["counts"]["won"] == first.header["counts"]["lost"] == 0
    assert "another model" in ask(one, asked, {name: weights[name] + 1}).header["declined"]
    assert ask(one, {**asked, "round": "r2"}, {name: weights[name] + 1}).header["counts"]


def test_a_device_takes_part_in_so_many_rounds(place, tmp_path):
    one = device(place, 0, tmp_path, most_rounds=1)
    first = ask(one, request(place))
    assert first.content and ask(one, request(place)).content == first.content  # the same round again
    assert "--most-rounds" in ask(one, request(place, round="r2")).header["declined"]
    (one.home / client_app.STATE).write_text("{")  # nobody can tell how many they were
    assert "cannot be read" in ask(one, request(place, round="r3")).header["declined"]


def test_a_device_sends_deltas_only_if_its_owner_allows_it(place, tmp_path):
    asked = request(place, kind="delta", seconds=300.0)
    assert "--deltas" in ask(device(place, 0, tmp_path), asked).header["declined"]
    found = ask(device(place, 1, tmp_path, deltas=True, environ={"EDGE_SEL_EPOCHS": "1"}), asked)
    assert found.header["declined"] is None and found.content
    noisy = ask(device(place, 2, tmp_path, deltas=True, privacy=(8.0, 1e-5)), asked)
    assert "noise is for statistics" in noisy.header["declined"]
