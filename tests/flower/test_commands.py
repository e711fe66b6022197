"""The commands: what they say where Flower, a file or an option is missing, and that help needs none of it."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

pytest.importorskip("cryptography", reason="needs edge-sel[sign]")
from edge_sel.cli.main import cli
from edge_sel.errors import BadInputError, SetupError, UsageError
from edge_sel.flower import client_app, processes, server_app
from edge_sel.flower.keys import read_cards
from edge_sel.flower.round import TooFewDevicesError
from edge_sel.flower.server_app import Ended
from edge_sel.pack.reader import builtin_pack
from edge_sel.pack.signatures import fingerprint, read_private_key


def run(*words):
    return CliRunner().invoke(cli, ["fleet", *map(str, words)])


@pytest.fixture
def place(tmp_path):
    builtin_pack().save(tmp_path / "model.edgepack")
    assert CliRunner().invoke(cli, ["pack", "keygen", str(tmp_path / "cam")]).exit_code == 0
    (tmp_path / "images").mkdir()
    return tmp_path


def enrol(place):
    done = run("enrol", place / "cam.key.pem", place / "cam.device.json")
    assert done.exit_code == 0, done.output
    return done


def serve_words(place, address="127.0.0.1:1"):
    return ("serve", place / "model.edgepack", "--home", place / "home", "--address", address, "--devices", place)


def join_words(place, server="127.0.0.1:1"):
    return ("join", server, place / "model.edgepack", "--data", place / "images", "--key", place / "cam.key.pem",
            "--ca", place / "ca.pem", "--home", place / "state")  # fmt: skip


def test_a_device_is_enrolled(place):
    done = enrol(place)
    (card,) = read_cards((place,)).values()
    assert (
        card.device == fingerprint(read_private_key(place / "cam.key.pem").public_key())
        and card.device[:12] in done.output
    )
    assert isinstance(run("enrol", place / "cam.key.pem", place / "cam.json").exception, UsageError)


@pytest.mark.parametrize("words", [serve_words, join_words], ids=["serve", "join"])
def test_without_flower_one_line_says_what_to_install(place, monkeypatch, words):
    enrol(place)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    error = run(*words(place)).exception
    assert isinstance(error, SetupError) and "edge-sel[fleet]" in str(error) and "\n" not in str(error)
    assert not (place / "home").exists() and not (place / "state").exists()


@pytest.mark.parametrize("words", [serve_words, join_words], ids=["serve", "join"])
def test_an_address_without_a_port_is_told(place, monkeypatch, words):
    enrol(place)
    monkeypatch.setattr(server_app, "require_flower", lambda: None)
    assert isinstance(run(*words(place, "fleet.example")).exception, UsageError)


def test_a_server_without_devices_is_told(place):
    assert isinstance(run(*serve_words(place)).exception, BadInputError)


def test_a_simulation_overwrites_nothing(place):
    done = run("simulate", place / "model.edgepack", "--data", place / "images", "--home", place)
    assert isinstance(done.exception, UsageError) and (place / "model.edgepack").exists()


def test_too_few_devices_are_no_failure_but_status_75(place, monkeypatch):
    def too_few(*_, **__):
        raise TooFewDevicesError("1 devices took part, 2 are needed")

    enrol(place)
    monkeypatch.setattr(server_app, "serve", too_few)
    done = run(*serve_words(place))
    assert done.exit_code == 75 and "the round stays open" in done.output


def test_what_the_rounds_came_to(place, monkeypatch):
    ended = Ended(3, "published", "", 2, {"ab": "quiet hours"}, [], 2, 12.5, 681_000, 45_000, "home/x.edgepack")
    enrol(place)
    monkeypatch.setattr(server_app, "serve", lambda *_, **__: [ended])
    assert "round 3 published: 2 updates, 1 declined" in run(*serve_words(place)).output
    assert '"declined": {"ab": "quiet hours"}' in run(*serve_words(place), "--json").output


def test_options_of_join_arrive(place, monkeypatch):
    found = []
    monkeypatch.setattr(client_app, "join", lambda *given: found.append(given))
    done = run(*join_words(place), "--epsilon", 8, "--most-rounds", 5, "--threads", 1)
    assert done.exit_code == 0, done.output
    device, server, authority = found[0][:3]
    assert (device.privacy, device.most_rounds, device.threads) == ((8.0, 1e-5), 5, 1)
    assert (server, authority) == ("127.0.0.1:1", place / "ca.pem")


def test_help_imports_no_flower():
    code = (
        "import sys; from edge_sel.cli import fleet, fleet_flower\n"
        "import edge_sel.flower.client_app, edge_sel.flower.server_app, edge_sel.flower.simulate\n"
        "assert not {'flwr', 'h11', 'httpx', 'cryptography', 'grpc'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_is_in_the_group():
    group = cli.get_command(click.Context(cli), "fleet")
    assert {"update", "merge", "inspect", "serve", "join", "enrol", "simulate"} <= group.commands.keys()
