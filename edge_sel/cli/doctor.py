"""``edge-sel doctor``: which meters, thermal sensors and engines work here, why not, and how to mend them."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from edge_sel.cli.common import echo_json, json_option, profile_option

LEAST_FREE_BYTES = 500_000_000
"""Below this a run may not end: checkpoints, the model and the weights are each written beside their predecessors."""


@click.command()
@profile_option
@json_option
def command(profile: str | None, as_json: bool) -> None:
    """What works on this machine: meters, temperatures, engines."""
    report = examine(profile)
    if as_json:
        echo_json(report)
    else:
        show(report)


def examine(profile: str | None) -> dict[str, Any]:
    """The report. Each part is looked at by itself: one that crashes becomes a line in ``failed``.

    Raises:
        UsageError: the profile that was asked for cannot be used.
    """
    from edge_sel import __version__
    from edge_sel.config.profiles import METERS, detect_profile, load_profile

    failed: list[dict[str, str]] = []

    def attempt(part: str, look: Callable[[], Any], instead: Any) -> Any:
        try:
            return look()
        except Exception as error:
            failed.append({"part": part, "why": f"{type(error).__name__}: {error}"})
            return instead

    device = load_profile(profile) if profile else attempt("profile", lambda: load_profile(detect_profile()), None)
    why = "given by --profile" if profile else "detected" if device else "as none could be detected"
    device = device or load_profile("default")
    report: dict[str, Any] = {
        "schema": 1,
        "version": __version__,
        "python": platform.python_version(),
        "platform": attempt("platform", lambda: f"{platform.system()} {platform.machine()}", ""),
        "profile": device.name,
        "profile_why": why,
        "cpus": attempt("processors", processors, None),
        "disk": attempt("disk", disk, None),
        **attempt("surroundings", surroundings, {"container": None, "wsl": False}),
        "meters": [
            attempt(f"meter {n}", partial(meter, device, n), {**unknown(n), "fix": None, "power_w": None, "rails": []})
            for n in METERS
        ],
        "permissions": attempt("permissions", permissions, []),
        **attempt("temperatures", zones, {"thermal": [], "thermal_skipped": []}),
        "throttling": attempt("throttling", throttling, []),
        "engines": [attempt(f"engine {name}", look, unknown(name)) for name, look in ENGINES.items()],
    }
    report["thermal"] += attempt("psutil's temperatures", sensors, [])
    return {**report, "hints": attempt("hints", lambda: hints(report, device), []), "failed": failed}


def unknown(name: str) -> dict[str, Any]:
    """The entry of what could not even be looked at."""
    return {"name": name, "usable": False, "why": "could not be looked at, see below"}


def processors() -> dict[str, Any]:
    """How many there are, how many this process may run on, and how many processors' time it may take."""
    from edge_sel.power.processors import find_processors

    return asdict(find_processors())


def disk() -> dict[str, Any]:
    """Free space where a run would be written."""
    here = Path.cwd()
    return {"path": str(here), "free_bytes": shutil.disk_usage(here).free}


def surroundings() -> dict[str, Any]:
    """The container this is in, and whether this is Linux inside Windows."""
    from edge_sel.power.access import find_container, is_wsl

    container = find_container()
    return {"container": None if container is None else container._asdict(), "wsl": is_wsl()}


def meter(device: Any, name: str) -> dict[str, Any]:
    """One meter, tried by reading values from it."""
    from edge_sel.power.find import find_meter

    found, (probe,) = find_meter(device, name)
    entry = {"name": name, "usable": probe.usable, "why": probe.why, "fix": probe.fix, "power_w": probe.power_w}
    readings: Callable[[], list[Any]] = getattr(found, "readings", list)
    try:
        return {**entry, "rails": [{"name": rail, "power_w": watts} for rail, watts in readings()]}
    finally:
        if found is not None:
            found.close()


def permissions() -> list[dict[str, Any]]:
    """Whether the files that meters need can be opened."""
    from edge_sel.power.access import find_container, permissions
    from edge_sel.power.find import sysfs_root

    return [entry._asdict() for entry in permissions(Path("/"), sysfs_root(), container=find_container())]


def zones() -> dict[str, Any]:
    """The kernel's thermal zones, and those that say nothing of use."""
    from edge_sel.power.find import sysfs_root
    from edge_sel.power.zones import ZoneReader

    reader = ZoneReader(sysfs_root())
    found = [{"zone": zone.name, "temp_c": zone.temp_c} for zone in reader.read()]
    return {"thermal": found, "thermal_skipped": [{"zone": name, "why": why} for name, why in reader.skipped]}


def sensors() -> list[dict[str, Any]]:
    """psutil's temperature sensors."""
    import psutil

    found: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    return [
        {"zone": part.label or chip, "temp_c": part.current}
        for chip, parts in found.items()
        for part in parts
        if part.current is not None
    ]


def throttling() -> list[dict[str, Any]]:
    """What may slow the device down: whether it does now, and how often it did since the start."""
    from edge_sel.power.find import sysfs_root
    from edge_sel.power.throttle import read_throttling

    return [entry._asdict() for entry in read_throttling(sysfs_root())]


def ort() -> dict[str, Any]:
    """The default engine: does it load a training graph?"""
    try:
        import onnxruntime

        from edge_sel.engines.ort import OrtEngine
        from edge_sel.pack.builtin import builtin_pack

        pack = builtin_pack()
        OrtEngine(threads=1).trainer(pack, "head", pack.weights())
    except Exception as error:
        return {"name": "ort", "usable": False, "why": str(error) or type(error).__name__}
    return {"name": "ort", "usable": True, "why": f"onnxruntime {onnxruntime.__version__} runs a training graph"}


def torch() -> dict[str, Any]:
    """Can torch be found?"""
    present = importlib.util.find_spec("torch") is not None
    why = "installed" if present else "not installed; not needed on a device"
    return {"name": "torch", "usable": present, "why": why}


ENGINES: dict[str, Callable[[], dict[str, Any]]] = {"ort": ort, "torch": torch}


def hints(report: dict[str, Any], device: Any) -> list[str]:
    """What to do about what was found, other than about single meters."""
    from edge_sel.power.access import Container, hints
    from edge_sel.power.find import sysfs_root

    # A graphics card's watts say nothing of work on the processor, which is what the default engine does.
    measured = any(entry["usable"] and entry["name"] not in ("psutil", "nvml") for entry in report["meters"])
    moved = "EDGE_SEL_SYSFS_ROOT" in os.environ
    container = report["container"] and Container(**report["container"])
    found: list[str] = hints(container, Path("/"), sysfs_root(), wanted=not measured and not moved)
    cpus, free = report["cpus"], report["disk"]
    if cpus and cpus["quota"] and cpus["quota"] < min(cpus["allowed"], device.threads or cpus["allowed"]):
        threads = max(1, int(cpus["quota"]))
        found.append(
            f"this process may take the time of {cpus['quota']:.3g} of {cpus['allowed']} processors, and more threads "
            f"only wait for one another: --threads {threads}, or EDGE_SEL_THREADS={threads}"
        )
    if free and free["free_bytes"] < LEAST_FREE_BYTES:
        found.append(
            f"only {free['free_bytes'] / 1e6:.0f} MB are free in {free['path']}: free some, or use another --out"
        )
    return found


def show(report: dict[str, Any]) -> None:
    """One screen for a person."""
    from edge_sel.units import format_power

    cpus, free, container = report["cpus"], report["disk"], report["container"]
    facts = [f"edge-sel {report['version']}", f"Python {report['python']}", report["platform"]]
    facts += [f"{cpus['allowed']} processors"] if cpus else []
    facts += [f"{free['free_bytes'] / 1e9:.1f} GB free here"] if free else []
    click.echo(", ".join(facts))
    click.echo(f"profile: {report['profile']} ({report['profile_why']})")
    if container:
        click.echo(f"container: {container['kind']} ({container['sign']})")
    for engine in report["engines"]:
        click.echo(f"{_mark(engine)} engine {engine['name']}: {engine['why']}")
    mended = {entry["meter"]: entry for entry in report["permissions"] if not entry["usable"]}
    for entry in report["meters"]:
        power = "" if entry["power_w"] is None else f", {format_power(entry['power_w'])} now"
        click.echo(f"{_mark(entry)} meter {entry['name']}: {entry['why']}{power}")
        for rail in entry["rails"]:
            click.echo(f"      {rail['name']} {format_power(rail['power_w'])}")
        fix = None if entry["usable"] else mended.get(entry["name"], entry)["fix"]
        if fix:
            click.echo(f"      to mend it: {fix}")
    for zone in report["thermal"]:
        click.echo(f"    temperature {zone['zone']}: {zone['temp_c']:.1f} °C")
    for zone in report["thermal_skipped"]:
        click.echo(f"    temperature {zone['zone']} does not count: {zone['why']}")
    if not report["thermal"]:
        click.echo("no   temperature sensor can be read")
    for part in report["throttling"]:
        if part["now"]:
            click.echo(f"slow {part['part']}: {part['reason']}, now")
        elif part["count"]:
            times = "" if part["count"] == 1 else f", {part['count']} times"
            click.echo(f"    {part['part']}: {part['reason']} since it was started{times}")
    for part in report["failed"]:
        click.echo(f"??   {part['part']} could not be looked at: {part['why']}")
    for hint in report["hints"]:
        click.echo(f"hint {hint}")


def _mark(entry: dict[str, Any]) -> str:
    return "ok  " if entry["usable"] else "no  "
