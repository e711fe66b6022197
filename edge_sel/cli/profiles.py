"""``edge-sel profiles``."""

from __future__ import annotations

from dataclasses import asdict

import click

from edge_sel.cli.common import echo_json, json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """The device profiles that come with edge-sel, and the one that fits this machine."""
    from edge_sel.config.profiles import detect_profile, list_profiles, load_profile
    from edge_sel.units import format_power

    detected = detect_profile()
    profiles = [load_profile(name) for name in list_profiles()]
    if as_json:
        echo_json({"schema": 1, "detected": detected, "profiles": [asdict(p) for p in profiles]})
        return
    width = max(len(profile.name) for profile in profiles)
    for profile in profiles:
        here = "  ← this machine" if profile.name == detected else ""
        watts = f"{format_power(profile.idle_w)} idle to {format_power(profile.max_w)}"
        click.echo(f"{profile.name:{width}} {watts}, meters: {', '.join(profile.meters)}{here}")
