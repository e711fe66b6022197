"""``edge-sel doctor`` and ``profiles``: what device this is, which meters and engines work here, how to fix them."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from edge_sel.cli.common import echo_json, json_option, profile_option, say
from edge_sel.config.profiles import Profile, detect_profile, list_profiles, load_profile
from edge_sel.power import access
from edge_sel.power.find import METER_KINDS, find_meter
from edge_sel.power.resources import find_processors
from edge_sel.power.temperature import ZoneReader
from edge_sel.power.throttle import ThrottleReader
from edge_sel.sysfs import sysfs_root
from edge_sel.units import format_power
from edge_sel.version import __version__

LEAST_FREE_BYTES = 500_000_000
"""Below this a run may not end: checkpoints, the model and the weights are each written beside their predecessors."""

Answer = TypeVar("Answer")
Entry = dict[str, Any]
"""A part of the report, as ``--json`` prints it."""
UNKNOWN = False, "could not be looked at, see below"
NO_METER: Entry = {"usable": UNKNOWN[0], "why": UNKNOWN[1], "fix": None, "power_w": None, "rails": []}


@click.command()
@json_option
def profiles_command(as_json: bool) -> None:
    """The device profiles that come with edge-sel, and the one that fits this machine."""
    detected = detect_profile()
    known = [load_profile(name) for name in list_profiles()]
    if as_json:
        echo_json({"schema": 1, "detected": detected, "profiles": [asdict(profile) for profile in known]})
        return
    width = max(len(profile.name) for profile in known)
    for profile in known:
        here = "  ← this machine" if profile.name == detected else ""
        watts = f"{format_power(profile.idle_w)} idle to {format_power(profile.max_w)}"
        say(f"{profile.name:{width}} {watts}, meters: {', '.join(profile.meters)}{here}")


@click.command()
@profile_option
@json_option
def command(profile: str | None, as_json: bool) -> None:
    """What works on this machine: meters, temperatures, engines."""
    report = examine(profile)
    if as_json:
        echo_json(report)
    else:
        print_report(report)


def print_report(report: dict[str, Any]) -> None:
    """One screen for a person."""
    cpus, free, container = report["cpus"], report["disk"], report["container"]
    facts = [f"edge-sel {report['version']}", f"Python {report['python']}", report["platform"]]
    facts += [f"{cpus['allowed']} processors"] if cpus else []
    facts += [f"{free['free_bytes'] / 1e9:.1f} GB free here"] if free else []
    say(", ".join(facts))
    say(f"profile: {report['profile']} ({report['profile_why']})")
    if container:
        say(f"container: {container['kind']} ({container['sign']})")
    for engine in report["engines"]:
        say(f"{_mark(engine)} engine {engine['name']}: {engine['why']}")
    fixes = {entry["meter"]: entry for entry in report["permissions"] if not entry["usable"]}
    for entry in report["meters"]:
        power = "" if entry["power_w"] is None else f", {format_power(entry['power_w'])} now"
        say(f"{_mark(entry)} meter {entry['name']}: {entry['why']}{power}")
        for rail in entry["rails"]:
            say(f"      {rail['name']} {format_power(rail['power_w'])}")
        fix = None if entry["usable"] else fixes.get(entry["name"], entry)["fix"]
        if fix:
            say(f"      to fix it: {fix}")
    for zone in report["thermal"]:
        say(f"    temperature {zone['zone']}: {zone['temp_c']:.1f} °C")
    for zone in report["thermal_skipped"]:
        say(f"    temperature {zone['zone']} does not count: {zone['why']}")
    if not report["thermal"]:
        say("no   temperature sensor can be read")
    for part in report["throttling"]:
        if part["now"]:
            say(f"slow {part['part']}: {part['reason']}, now")
        elif part["count"]:
            times = "" if part["count"] == 1 else f", {part['count']} times"
            say(f"    {part['part']}: {part['reason']} since it was started{times}")
    for part in report["failed"]:
        say(f"??   {part['part']} could not be looked at: {part['why']}")
    for hint in report["hints"]:
        say(f"hint {hint}")


def _mark(entry: dict[str, Any]) -> str:
    return "ok  " if entry["usable"] else "no  "


def examine(profile: str | None, root: Path = Path("/")) -> Entry:
    """The report. A part that crashes becomes a line in ``failed``.

    Args:
        profile: name or file of the device profile; None to detect it.
        root: stands in for ``/`` in tests.

    Raises:
        UsageError: the profile that was asked for cannot be used.
    """
    failed: list[dict[str, str]] = []

    def attempt(part: str, look: Callable[[], Answer], instead: Answer) -> Answer:
        try:
            return look()
        except Exception as error:
            failed.append({"part": part, "why": f"{type(error).__name__}: {error}"})
            return instead

    def detect() -> Profile | None:
        return load_profile(detect_profile(root))

    sysfs = sysfs_root(root=root)
    device = load_profile(profile) if profile else attempt("profile", detect, None)
    why = "given by --profile" if profile else "detected" if device else "as none could be detected"
    device = device or load_profile("default")
    report: Entry = {
        "schema": 1,
        "version": __version__,
        "python": platform.python_version(),
        "platform": attempt("platform", lambda: f"{platform.system()} {platform.machine()}", ""),
        "profile": device.name,
        "profile_why": why,
        "cpus": attempt("processors", lambda: asdict(find_processors(root)), None),
        "disk": attempt("disk", disk, None),
        **attempt("surroundings", lambda: surroundings(root), {"container": None, "wsl": False}),
        "meters": [
            attempt(f"meter {name}", partial(meter, device, name), {"name": name, **NO_METER}) for name in METER_KINDS
        ],
        "permissions": attempt("permissions", lambda: find_permissions(root, sysfs), list[Entry]()),
        **attempt("temperatures", lambda: zones(sysfs), {"thermal": [], "thermal_skipped": []}),
        "throttling": attempt("throttling", lambda: [e._asdict() for e in ThrottleReader(sysfs).read()], list[Entry]()),
    }
    engines = {name: attempt(f"engine {name}", look, UNKNOWN) for name, look in ENGINES.items()}
    report["engines"] = [{"name": name, "usable": usable, "why": why} for name, (usable, why) in engines.items()]
    report["thermal"] += attempt("psutil's temperatures", sensors, list[Entry]())
    hints = attempt("hints", lambda: find_hints(report, device, root, sysfs), list[str]())
    return {**report, "hints": hints, "failed": failed}


def disk() -> Entry:
    """Free space where a run would be written."""
    here = Path.cwd()
    return {"path": str(here), "free_bytes": shutil.disk_usage(here).free}


def surroundings(root: Path) -> Entry:
    """The container this is in, and whether this is Linux inside Windows."""
    container = access.find_container(root)
    return {"container": None if container is None else container._asdict(), "wsl": access.is_wsl(root)}


def meter(device: Profile, name: str) -> Entry:
    """One meter, tried by reading values from it."""
    found, (probe,) = find_meter(device, name)
    entry = {"name": name, "usable": probe.usable, "why": probe.why, "fix": probe.fix, "power_w": probe.power_w}
    readings: Callable[[], list[tuple[str, float]]] = getattr(found, "readings", list)
    try:
        return {**entry, "rails": [{"name": rail, "power_w": watts} for rail, watts in readings()]}
    finally:
        if found is not None:
            found.close()


def find_permissions(root: Path, sysfs: Path) -> list[Entry]:
    """Whether the files that meters need can be opened."""
    return [entry._asdict() for entry in access.permissions(root, sysfs, container=access.find_container(root))]


def zones(sysfs: Path) -> Entry:
    """The kernel's thermal zones, and those that say nothing of use."""
    reader = ZoneReader(sysfs)
    found = [{"zone": zone.name, "temp_c": zone.temp_c} for zone in reader.read()]
    return {"thermal": found, "thermal_skipped": [{"zone": name, "why": why} for name, why in reader.skipped]}


def sensors() -> list[Entry]:
    """psutil's temperature sensors."""
    import psutil

    found: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    return [
        {"zone": part.label or chip, "temp_c": part.current}
        for chip, parts in found.items()
        for part in parts
        if part.current is not None
    ]


def ort() -> tuple[bool, str]:
    """The default engine: where does it run a training graph? That a provider is built in says nothing."""
    try:
        from edge_sel.engines.native import CUDA
        from edge_sel.engines.native import ort as onnxruntime
        from edge_sel.engines.ort import OrtEngine
        from edge_sel.pack.reader import builtin_pack

        pack = builtin_pack()
        OrtEngine(threads=1).trainer(pack, "head", pack.weights())
    except Exception as error:
        return False, str(error) or type(error).__name__
    from edge_sel.engines.ort import why_no_cuda

    found = f"onnxruntime {onnxruntime.__version__} runs a training graph on the processor"
    if CUDA in onnxruntime.get_available_providers():
        why = why_no_cuda()
        found += ", and on the GPU" if why is None else f"; not on a GPU, though it is built for one: {why}"
    return True, found


def ort_training() -> tuple[bool, str]:
    """The official training runtime; of two runtimes in one environment, how to fix it."""
    from edge_sel.engines.ort_training_api import import_api, owners

    installed = owners()
    if len(installed) < 2 and "onnxruntime-training" not in installed:
        return False, "not installed; not needed, as ort trains without it"
    try:
        import_api()
    except Exception as error:
        return False, str(error) or type(error).__name__
    return True, f"onnxruntime-training {installed['onnxruntime-training']}"


def torch() -> tuple[bool, str]:
    """Can torch be found?"""
    present = importlib.util.find_spec("torch") is not None
    return present, "installed" if present else "not installed; not needed on a device"


ENGINES = {"ort": ort, "ort-training": ort_training, "torch": torch}
"""Whether each works, and what there is to say of it."""


def find_hints(report: Entry, device: Profile, root: Path, sysfs: Path) -> list[str]:
    """What to do about what was found, other than about single meters."""
    # A graphics card's watts say nothing of work on the processor, which is what the default engine does.
    usable = [METER_KINDS[entry["name"]] for entry in report["meters"] if entry["usable"]]
    measured = any(kind.source == "measured" and kind.of != "gpu" for kind in usable)
    moved = "EDGE_SEL_SYSFS_ROOT" in os.environ
    container = report["container"] and access.Container(**report["container"])
    found = access.hints(container, root, sysfs, wanted=not measured and not moved)
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
