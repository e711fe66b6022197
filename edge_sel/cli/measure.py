"""``edge-sel measure``: joules, watts, degrees and CPU time of any command."""

from __future__ import annotations

import sys
from typing import Any

import click

from edge_sel.cli.common import LONGEST_S, FiniteRange, echo_json, profile_option


@click.command(context_settings={"ignore_unknown_options": True})
@profile_option
@click.option("--meter", default="auto", show_default=True, help="auto, or one of those that `edge-sel doctor` lists.")
@click.option(
    "--idle",
    "idle_s",
    default=2.0,
    show_default=True,
    type=FiniteRange(0, LONGEST_S),
    help="Seconds to measure idle power before the command; not used by a meter that models.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on stdout; what the command prints there goes to stderr."
)
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
def command(profile: str | None, meter: str, idle_s: float, as_json: bool, words: tuple[str, ...]) -> int:
    """Run COMMAND, then report its energy. The exit status is the command's; 127: not found, 126: no program."""
    from edge_sel.cli.child import run_child
    from edge_sel.power.monitor import EnergyMonitor

    with EnergyMonitor(meter, profile=profile, idle_s=idle_s) as monitor:
        status, cpu_s = run_child(words, stdout=sys.stderr if as_json else None)
    figure, device = monitor.figure, monitor.profile
    energy = figure.to_json()
    if figure.source == "modelled":  # the model knows this process only; the command is its child
        energy["net_j"] = modelled_net_j(cpu_s, device.idle_w, device.max_w)
    result = {
        "schema": 1,
        "exit": status,
        "energy": energy,
        "time_s": figure.seconds,
        "cpu_s": cpu_s,
        "temp_c": {"max": figure.temp_c},
    }
    if as_json:
        echo_json(result)
    else:
        print_measurement(result)
    return status


def modelled_net_j(cpu_s: float, idle_w: float, max_w: float) -> float:
    """``(max − idle)·cpu_s/cores``: the profile's model, for the CPU time of the command alone."""
    from edge_sel.power.resources import logical_processors

    return (max_w - idle_w) * cpu_s / logical_processors()


def print_measurement(result: dict[str, Any]) -> None:
    """The figures on stderr, so that the command's own output stays alone on stdout."""
    from edge_sel.units import format_duration, format_energy, format_power

    energy = result["energy"]
    if energy["total_j"] is None:
        line = f"energy unavailable ({energy['why']})"
    else:
        line = f"{format_energy(energy['total_j'])} {energy['source']} by {energy['meter']}"
        line += f" at {format_power(energy['mean_power_w'])}"
        if energy["net_j"] is not None:
            line += f", {format_energy(energy['net_j'])} net of idle"
    hottest = "" if result["temp_c"]["max"] is None else f", {result['temp_c']['max']:.0f} °C"
    times = f"{format_duration(result['time_s'])}, {format_duration(result['cpu_s'])} of CPU"
    click.echo(f"edge-sel measure: {line}; {times}{hottest}; exit {result['exit']}", err=True)
