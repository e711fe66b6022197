"""``edge-sel doctor``: which meters, thermal sensors and engines work here, why not, and how to mend them."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import click


@click.command()
@click.option("--profile", help="Device profile: a name or a .toml file. [default: detected]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(profile: str | None, as_json: bool) -> None:
    """What works on this machine: meters, temperatures, engines."""
    from edge_sel.profiles import detect_profile, load_profile

    device = load_profile(profile or detect_profile())
    report = {"schema": 1, "profile": device.name, "meters": meters(device), "thermal": thermal(), "engines": engines()}
    if as_json:
        click.echo(json.dumps(report))
    else:
        show(report)


def meters(device: Any) -> list[dict[str, Any]]:
    """Every meter, tried by reading values from it."""
    from edge_sel.power.find import OPENERS, find_meter

    found = []
    for name in OPENERS:
        meter, (probe,) = find_meter(device, name)
        rails = []
        if meter is not None:
            readings = getattr(meter, "readings", None)
            rails = [{"name": rail, "power_w": watts} for rail, watts in readings()] if readings else []
            meter.close()
        entry = {"name": name, "usable": probe.usable, "why": probe.why, "fix": probe.fix, "power_w": probe.power_w}
        found.append({**entry, "rails": rails})
    return found


def thermal() -> list[dict[str, Any]]:
    """Every readable temperature: the kernel's zones, then psutil's sensors."""
    import psutil

    from edge_sel.power.find import sysfs_root
    from edge_sel.power.zones import read_zones

    zones = [{"zone": zone.name, "temp_c": zone.temp_c} for zone in read_zones(sysfs_root())]
    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    return zones + [
        {"zone": part.label or chip, "temp_c": part.current}
        for chip, parts in sensors.items()
        for part in parts
        if part.current is not None
    ]


def engines() -> list[dict[str, Any]]:
    """Every engine: can its library be found, and does the default one load a graph?"""
    from edge_sel.engines.ort import OrtEngine
    from edge_sel.errors import EdgeSelError
    from edge_sel.pack.builtin import builtin_pack

    pack = builtin_pack()
    try:
        import onnxruntime

        OrtEngine(threads=1).trainer(pack, "head", pack.weights())
        ort = {"name": "ort", "usable": True, "why": f"onnxruntime {onnxruntime.__version__} runs a training graph"}
    except EdgeSelError as error:
        ort = {"name": "ort", "usable": False, "why": str(error)}
    present = importlib.util.find_spec("torch") is not None
    why = "installed" if present else "not installed; not needed on a device"
    return [ort, {"name": "torch", "usable": present, "why": why}]


def show(report: dict[str, Any]) -> None:
    """One screen for a person."""
    from edge_sel.units import format_power

    click.echo(f"profile: {report['profile']}")
    for meter in report["meters"]:
        power = "" if meter["power_w"] is None else f", {format_power(meter['power_w'])} now"
        click.echo(f"{_mark(meter)} meter {meter['name']}: {meter['why']}{power}")
        for rail in meter["rails"]:
            click.echo(f"      {rail['name']} {format_power(rail['power_w'])}")
        if meter["fix"]:
            click.echo(f"      to mend it: {meter['fix']}")
    for zone in report["thermal"]:
        click.echo(f"    temperature {zone['zone']}: {zone['temp_c']:.1f} °C")
    if not report["thermal"]:
        click.echo("no   temperature sensor can be read")
    for engine in report["engines"]:
        click.echo(f"{_mark(engine)} engine {engine['name']}: {engine['why']}")


def _mark(entry: dict[str, Any]) -> str:
    return "ok  " if entry["usable"] else "no  "
