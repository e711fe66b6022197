"""``edge-sel profiles``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(as_json: bool) -> None:
    """The device profiles that come with edge-sel, and the one that fits this machine."""
    from edge_sel.config.profiles import detect_profile, list_profiles, load_profile
    from edge_sel.units import format_power

    detected = detect_profile()
    profiles = [load_profile(name) for name in list_profiles()]
    if as_json:
        click.echo(json.dumps({"schema": 1, "detected": detected, "profiles": [asdict(p) for p in profiles]}))
        return
    for profile in profiles:
        here = "  ← this machine" if profile.name == detected else ""
        watts = f"{format_power(profile.idle_w)} idle to {format_power(profile.max_w)}"
        click.echo(f"{profile.name:17} {watts}, meters: {', '.join(profile.meters)}{here}")
