"""``edge-sel doctor``: which meters, thermal sensors and engines work here, why not, and how to fix them."""

from __future__ import annotations

from typing import Any

import click

from edge_sel.cli.common import echo_json, json_option, profile_option
from edge_sel.units import format_power


@click.command()
@profile_option
@json_option
def command(profile: str | None, as_json: bool) -> None:
    """What works on this machine: meters, temperatures, engines."""
    from edge_sel.cli.examine import examine

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
    click.echo(", ".join(facts))
    click.echo(f"profile: {report['profile']} ({report['profile_why']})")
    if container:
        click.echo(f"container: {container['kind']} ({container['sign']})")
    for engine in report["engines"]:
        click.echo(f"{_mark(engine)} engine {engine['name']}: {engine['why']}")
    fixes = {entry["meter"]: entry for entry in report["permissions"] if not entry["usable"]}
    for entry in report["meters"]:
        power = "" if entry["power_w"] is None else f", {format_power(entry['power_w'])} now"
        click.echo(f"{_mark(entry)} meter {entry['name']}: {entry['why']}{power}")
        for rail in entry["rails"]:
            click.echo(f"      {rail['name']} {format_power(rail['power_w'])}")
        fix = None if entry["usable"] else fixes.get(entry["name"], entry)["fix"]
        if fix:
            click.echo(f"      to fix it: {fix}")
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
