"""``edge-sel measure``: joules, watts, degrees and CPU time of any command."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, TextIO

import click

from edge_sel.cli.common import LONGEST_S, FiniteRange, echo_json, profile_option, say
from edge_sel.errors import UsageError
from edge_sel.units import format_duration, format_energy, format_power

NOT_FOUND, NOT_EXECUTABLE = 127, 126
GRACE_S = 5
"""How long a command that is told to end may take."""
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_HANDED_ON = (signal.SIGINT, signal.SIGQUIT, *_ENDING)


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
    """Run COMMAND, then report its energy. The exit status is the command's; 127: not found, 126: no program.

    Ctrl-C, SIGTERM and SIGHUP are handed on to COMMAND and all that it has started. After SIGKILL of edge-sel, which it
    cannot hand on, they go on.
    """
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


class NotStartedError(UsageError):
    """The command could not be started; the status is the one that a shell gives."""

    def __init__(self, error: OSError, command: str) -> None:
        super().__init__(f"cannot start the command ({error.strerror})", where=command or "''")
        self.exit_code = NOT_FOUND if error.errno == errno.ENOENT or not command else NOT_EXECUTABLE


def run_child(words: Sequence[str], stdout: TextIO | None) -> tuple[int, float]:
    """Exit status (128 + N after signal N) and CPU seconds of a command and its children.

    The command has a session and a process group of its own, to which signals are handed on. After SIGTERM or SIGHUP,
    what is left of the group after a grace is killed.

    Raises:
        NotStartedError: it is not there, or is no program.
    """
    process: subprocess.Popen[Any] | None = None
    deadline_s = 0.0

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal deadline_s
        if process is None:
            raise KeyboardInterrupt
        _send(process.pid, number)
        if number in _ENDING and not deadline_s:
            deadline_s = time.monotonic() + GRACE_S
            signal.alarm(GRACE_S)

    def kill(number: int, frame: FrameType | None) -> None:
        if process is not None:
            _send(process.pid, signal.SIGKILL)

    before_s = _cpu_of_children_s()
    held = {signal.SIGALRM: signal.signal(signal.SIGALRM, kill)}
    for handed_on in _HANDED_ON:
        if signal.getsignal(handed_on) is not signal.SIG_IGN:  # nohup
            held[handed_on] = signal.signal(handed_on, hand_on)
    try:
        process = subprocess.Popen(words, stdout=stdout, start_new_session=True)
        code = process.wait()
        while time.monotonic() < deadline_s and _send(process.pid, 0):
            time.sleep(0.02)
        if deadline_s:
            _send(process.pid, signal.SIGKILL)
    except OSError as error:
        raise NotStartedError(error, words[0]) from error
    finally:
        signal.alarm(0)
        for number, handler in held.items():
            signal.signal(number, handler)
    return (code if code >= 0 else 128 - code), _cpu_of_children_s() - before_s


def _send(group: int, number: int) -> bool:
    """Whether there was a process of the group to send the signal to."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


def _cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def modelled_net_j(cpu_s: float, idle_w: float, max_w: float) -> float:
    """``(max − idle)·cpu_s/cores``: the profile's model, for the CPU time of the command alone."""
    from edge_sel.power.resources import logical_processors

    return (max_w - idle_w) * cpu_s / logical_processors()


def print_measurement(result: dict[str, Any]) -> None:
    """The figures on stderr, so that the command's own output stays alone on stdout."""
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
    say(f"edge-sel measure: {line}; {times}{hottest}; exit {result['exit']}", err=True)
