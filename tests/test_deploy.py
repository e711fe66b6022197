"""The files of deploy/: they can be read, name metrics and options that exist, and bar what the services never need."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from edge_sel.cli.main import cli

DEPLOY = Path(__file__).parents[1] / "deploy"
PACKAGE = DEPLOY.parent / "edge_sel"
UNITS = sorted(DEPLOY.glob("*.service"))
NEW_UNITS = [unit for unit in UNITS if unit.stem != "edge-sel-finetune"]
CONTAINERFILES = sorted(DEPLOY.glob("Containerfile*"))
COMPOSE = DEPLOY / "compose.yaml"
OWN = ("watch", "label", "serve")
FLEET = ("fleet-join", "fleet-serve")
HARDENED = [
    "CapabilityBoundingSet=",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "KeyringMode=private",
    "RemoveIPC=yes",
    "LimitCORE=0",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "User=edge-sel",
    "StateDirectory=edge-sel",
    "UMask=0027",
    "CacheDirectory=edge-sel",
    "MemorySwapMax=0",
    "TasksMax=128",
]
FURTHER = [
    "Type=notify",
    "NotifyAccess=main",
    "Restart=on-failure",
    "PrivateUsers=yes",
    "ProtectClock=yes",
    "ProtectProc=invisible",
    "MemoryDenyWriteExecute=yes",
    "DevicePolicy=closed",
    "IPAddressDeny=any",
]

each = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


def lines(unit: Path) -> list[str]:
    return [line for line in unit.read_text().splitlines() if line and not line.startswith("#")]


def variables(unit: Path) -> dict[str, str]:
    pairs = [pair for line in lines(unit) if line.startswith("Environment=") for pair in line.split("=", 1)[1].split()]
    return dict(pair.split("=", 1) for pair in pairs)


def compose():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    return yaml.safe_load(COMPOSE.read_text())


def parse(words: list[str]) -> None:
    """Raise what click raises for a command or an option that does not exist, or a value that an option does not take."""
    context = click.Context(cli)
    command = cli.get_command(context, words[0])
    while isinstance(command, click.Group):
        command, words = command.get_command(context, words[1]), words[1:]
    assert command is not None, f"no command {words[0]}"
    below = click.Context(command, info_name=words[0])
    given, _, _ = command.make_parser(below).parse_args(list(words[1:]))
    for option in command.params:
        if isinstance(option.type, click.types.IntRange) and isinstance(given.get(option.name), str):
            option.type.convert(given[option.name], option, below)


def test_there_is_something_to_check():
    assert {unit.stem for unit in UNITS} == {f"edge-sel-{name}" for name in ("finetune", *OWN, *FLEET)}
    assert len(CONTAINERFILES) == 2


# --- units


@each
def test_a_unit_bars_what_it_never_needs(unit):
    missing = {*HARDENED, *(FURTHER if unit in NEW_UNITS else ())} - set(lines(unit))
    assert not missing
    assert any(line.startswith("MemoryMax=") for line in lines(unit))


@pytest.mark.parametrize("unit", NEW_UNITS, ids=lambda unit: unit.stem)
def test_no_two_units_share_a_folder_that_systemd_removes(unit):
    assert f"RuntimeDirectory={unit.stem}" in lines(unit) and f"WorkingDirectory=/run/{unit.stem}" in lines(unit)


def test_the_fleet_reaches_private_networks_and_is_started_again_when_the_server_forgot_it():
    for unit in (unit for unit in UNITS if unit.stem.removeprefix("edge-sel-") in FLEET):
        settings = lines(unit)
        (allowed,) = [line for line in settings if line.startswith("IPAddressAllow=")]
        assert "any" not in allowed and "0.0.0.0/0" not in allowed
        assert {"RestartSec=75", "KillMode=mixed"} <= {*settings} and "PrivateNetwork=yes" not in settings


def test_only_the_pages_have_a_network_and_only_on_this_machine():
    for unit in UNITS:
        settings = lines(unit)
        if unit.stem.removeprefix("edge-sel-") in FLEET:
            continue
        page = unit.stem in ("edge-sel-label", "edge-sel-serve")
        assert ("PrivateNetwork=yes" in settings) != page, unit
        assert not page or {"IPAddressAllow=localhost", "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"} <= {
            *settings
        }
        assert not page or variables(unit)["HOST"] == "127.0.0.1"


def test_only_who_pings_has_a_watchdog_and_only_the_pages_get_the_token():
    for unit in NEW_UNITS:
        name, settings = unit.stem.removeprefix("edge-sel-"), lines(unit)
        assert any(line.startswith("WatchdogSec=") for line in settings) == (name != "label")
        assert ("EnvironmentFile=-/etc/edge-sel/label.env" in settings) == (name in ("label", "serve")), (
            "others need none"
        )


@each
def test_the_command_of_a_unit_exists(unit):
    (start,) = [line for line in lines(unit) if line.startswith("ExecStart=")]
    program, *words = shlex.split(start.removeprefix("ExecStart="))
    fleet = unit.stem.removeprefix("edge-sel-") in FLEET  # with Flower, in an environment of its own
    assert program == f"/opt/edge-sel{'-fleet' if fleet else ''}/.venv/bin/edge-sel"
    parse([re.sub(r"\$\{(\w+)\}", lambda found: variables(unit)[found[1]], word) for word in words])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
@pytest.mark.parametrize(
    ("name", "most"), [("watch", 5), ("label", 10), ("serve", 10), ("fleet-join", 12), ("fleet-serve", 12)]
)
def test_systemd_finds_it_as_well_protected_as_the_readme_says(name, most):
    unit = str(DEPLOY / f"edge-sel-{name}.service")
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={most}", "--no-pager", unit]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "offline" in result.stderr:
        pytest.skip("an older systemd")
    assert result.returncode == 0, result.stdout[-2000:]


# --- containers


@pytest.mark.parametrize("file", CONTAINERFILES, ids=lambda file: file.name)
def test_an_image_is_of_wheels_and_of_nobody_important(file):
    text = file.read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE) and "--only-binary :all: --no-binary edge-sel" in text
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
    assert json.loads(entry) == ["edge-sel"]
    (given,) = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    assert json.loads(given) == ["--help"]
    for sources in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        assert [name for name in sources.split() if not (DEPLOY.parent / name).exists()] == []
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)
    known = re.findall(r"^(\S+) = \[", (DEPLOY.parent / "pyproject.toml").read_text(), re.MULTILINE)
    assert {"watch", "web"} <= {*extras.split(",")} <= {*known}


def test_compose_is_in_words_what_it_should_be():
    """Without PyYAML too."""
    text = COMPOSE.read_text()
    assert "\t" not in text
    assert re.findall(r"^  ([a-z]+):$", text.split("\nservices:\n")[1].split("\nnetworks:\n")[0], re.MULTILINE) == [
        *OWN, "prometheus", "grafana",
    ]  # fmt: skip


def test_every_service_of_compose_is_barred_and_watched():
    services = compose()["services"]
    assert {*services} == {*OWN, "prometheus", "grafana"}
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and "user" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"] and service["healthcheck"]["test"], name
        assert any(place.startswith("/tmp:") for place in service["tmpfs"]) and service["mem_limit"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    assert services["watch"]["network_mode"] == "none" and "EDGE_SEL_TOKEN" not in services["watch"]["environment"]
    for name in ("label", "serve", "prometheus"):
        assert services[name]["environment"]["EDGE_SEL_TOKEN"].startswith("${EDGE_SEL_TOKEN:?"), name


def test_the_commands_of_compose_exist():
    for name in OWN:
        parse(compose()["services"][name]["command"])


def test_what_compose_mounts_from_here_is_here():
    for service in compose()["services"].values():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (DEPLOY / volume.partition(":")[0]).is_file(), volume


def test_a_healthcheck_in_python_compiles():
    for name in OWN:
        *_, dash_c, program = compose()["services"][name]["healthcheck"]["test"]
        assert dash_c == "-c" and ast.parse(program)


def test_prometheus_asks_the_service_by_its_name():
    """``serve`` refuses other names than that of its machine."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    service = compose()["services"]["serve"]
    assert job["static_configs"] == [{"targets": [f"{service['hostname']}:{service['command'][-1]}"]}]
    (cookie,) = job["http_headers"]["Cookie"]["files"]
    assert f"> {cookie};" in compose()["services"]["prometheus"]["entrypoint"][-1]


@pytest.mark.parametrize("words", [["watch", "--no-such"], ["frobnicate"], ["serve", "--port", "a"]], ids=" ".join)
def test_what_does_not_exist_is_found(words):
    with pytest.raises((click.ClickException, AssertionError)):
        parse(words)


# --- metrics


def exported() -> set[str]:
    """The samples of every ``Family`` in the code of watch and serve, counters with the ``_total`` that they end in."""
    found = set()
    for path in (PACKAGE / "watch" / "metrics.py", PACKAGE / "web" / "serving.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Family":
                name, kind = (argument.value for argument in node.args[:2])
                found.add(f"{name}_total" if kind == "counter" else name)
    return found


def asked(board: dict) -> list[str]:
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    return [name for query in queries for name in re.findall(r"\bedge_sel_\w+", query)]


def board() -> dict:
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text())


def unknown(names: list[str]) -> list[str]:
    return [name for name in names if name not in exported()]


def test_every_metric_of_the_dashboard_is_exported():
    assert len(exported()) >= 11 and not unknown(asked(board()))


def test_every_metric_that_is_exported_is_shown_but_the_version_of_the_watcher():
    assert exported() - {*asked(board())} == {"edge_sel_watch_info"}


@pytest.mark.parametrize("wrong", ["edge_sel_watch_images", "edge_sel_watch_modell", "edge_sel_serve_requests_count"])
def test_a_wrong_metric_is_found(wrong):
    changed = board()
    changed["panels"][0]["targets"][0]["expr"] = f"rate({wrong}[5m])"
    assert unknown(asked(changed)) == [wrong]


def test_panels_do_not_overlap():
    assert board()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in board()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
