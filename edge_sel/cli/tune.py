"""``edge-sel tune``: the threads, spinning and batch size that take the fewest joules here, for ``finetune``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_sel.cli.common import (
    LONGEST_S,
    FiniteRange,
    GivenPath,
    echo_json,
    json_option,
    profile_option,
    require_signature_option,
    say,
)
from edge_sel.errors import SetupError, UsageError
from edge_sel.units import counted, format_energy

if TYPE_CHECKING:  # these take long to import, and `--help` does without them
    from edge_sel.pack.reader import Pack
    from edge_sel.tuning import Candidate, Costs


@click.command()
@click.argument("pack", required=False, type=GivenPath())
@click.option("--plan", "plans", multiple=True, help="Plan to measure; may be repeated. [default: those of `finetune`]")
@click.option(
    "--seconds",
    "seconds",
    default=3.0,
    show_default=True,
    type=FiniteRange(0, LONGEST_S, min_open=True),
    help="Seconds to measure each candidate, in three rounds; longer if the meter needs it.",
)
@profile_option
@click.option("--meter", help="auto, or one of those that `edge-sel doctor` lists.")
@require_signature_option
@json_option
def command(
    pack: Path | None, plans: tuple[str, ...], seconds: float, profile: str | None, meter: str | None,
    require_signature: tuple[str, ...] | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure joules per sample of PACK's training steps with various threads, spinning and batch sizes.

    `edge-sel finetune` then uses the best ones, unless a flag, EDGE_SEL_* or the TOML file says otherwise. Let nothing
    else run meanwhile.
    """
    from edge_sel import tuning
    from edge_sel.api.inputs import open_pack_or_builtin, open_profile, trusted_keys
    from edge_sel.config.settings import resolve
    from edge_sel.engines.by_name import choose_engine
    from edge_sel.power.find import find_meter
    from edge_sel.power.recorder import EnergyRecorder, clock_through_sleep
    from edge_sel.power.resources import usable_cores

    device = open_profile(profile)
    flags = {"meter": meter, "require_signature": require_signature}
    settings = resolve(profile=device, environ=os.environ, flags=flags).settings
    opened = open_pack_or_builtin(pack, trusted_keys(settings.require_signature))
    names = trained_plans(opened, plans or tuple(name.strip() for name in settings.plan.split(",")))
    path = tuning.tuning_file(opened.digest, "ort", os.environ)
    if path is None:
        raise SetupError("this user has no home folder to store the result in", fix="set XDG_CACHE_HOME to a folder")
    cores = usable_cores()
    found, _ = find_meter(device, settings.meter, on_processor=True)
    window_s = max(seconds / tuning.ROUNDS, found.min_window_s if found is not None else 0.0)
    tried = tuning.candidates(cores, settings.batch_size)
    note = partial(say, err=True)
    if not as_json:
        most_s = len(names) * len(tried) * tuning.ROUNDS * window_s
        work = f"{counted(len(names), 'plan')}, {counted(len(tried), 'candidate')}"
        note(f"{work}: about {most_s:.0f} s of measuring at most")
    with EnergyRecorder(found, profile=device) as recorder:
        bench = tuning.Bench(
            pack=opened,
            make_engine=lambda threads, spinning: choose_engine("ort", threads, spinning=spinning),
            recorder=recorder,
            window_s=window_s,
            clock=clock_through_sleep,
            cpu_time=time.process_time,
            memory=memory,
            tell=(lambda line: None) if as_json else note,
        )
        costs = {name: bench.measure(name, tried) for name in names}
    known = all(cost.energy_j is not None for measured in costs.values() for cost in measured.values())
    by = {"name": found.name, "source": found.source} if found and known else {"name": None, "source": "unavailable"}
    tuning.write_tuning(path, costs, here := tuning.machine(device.name, cores), by)
    choice = tuning.choose(tuning.total_costs(costs), settings.batch_size, {})
    result = {
        "schema": 1,
        "pack": str(opened.path),
        "engine": "ort",
        "machine": here,
        "meter": by,
        "plans": {
            n: [{**c._asdict(), **cost._asdict()} for c, cost in measured.items()] for n, measured in costs.items()
        },
        "choice": None if choice is None else choice._asdict(),
        "saved": saved_by(choice, tuning.Candidate(cores, False, settings.batch_size), costs),
        "file": str(path),
    }
    if as_json:
        echo_json(result)
    else:
        print_costs(result)


def saved_by(choice: Candidate | None, usual: Candidate, costs: Costs) -> float | None:
    """The share of joules that the choice takes less than usual; None where both were not measured with every plan."""
    from edge_sel.tuning import weight

    if choice is None or not all(choice in measured and usual in measured for measured in costs.values()):
        return None
    took, usually = (sum(weight(measured[c]) for measured in costs.values()) for c in (choice, usual))
    return 1 - took / usually


def trained_plans(pack: Pack, plans: tuple[str, ...]) -> list[str]:
    """Those of the plans that have training steps; of ``auto`` every such plan that the schedule may choose.

    Raises:
        UsageError: the pack does not have one of them, or none of them trains.
    """
    from edge_sel.edge.train.auto_schedule import body_of
    from edge_sel.pack.plan_kinds import HEAD, plan_kind

    known = pack.manifest.plans
    if "auto" in plans:
        # A head in closed form takes no step.
        head = () if any(plan_kind(name).needs_features for name in pack.plan_names) else (HEAD,)
        plans = tuple(
            name
            for name in (*head, body_of(known, rehearsed=bool(pack.manifest.gains)))
            if name is not None and name in known
        )
    names = [name for name in dict.fromkeys(plans) if pack.plan(name).kind.stepped]
    if not names:
        able = ", ".join(name for name, info in known.items() if info.kind.stepped)
        raise UsageError("no plan to measure", where=",".join(plans), fix=f"--plan with one of {able}")
    return names


def memory() -> tuple[int, int]:
    """Bytes that this process has, and that it could still have."""
    import psutil

    return psutil.Process().memory_info().rss, psutil.virtual_memory().available


def print_costs(result: Mapping[str, Any]) -> None:
    """A table for each plan, and what the next run will do."""
    from edge_sel.cli.show import plain_console, plain_table

    console = plain_console(soft_wrap=True)
    words = {
        "measured": f"gross joules measured by {result['meter']['name']}",
        "modelled": f"gross joules modelled by {result['meter']['name']}, from time, processor time and the profile",
        "unavailable": "no meter works here: compared by processor time",
    }[result["meter"]["source"]]
    choice = result["choice"]
    columns = ("threads", "spinning", "batch", "gross", "ms", "CPU ms", "rounds", "")
    for name, measured in result["plans"].items():
        rows = [
            [
                str(row["threads"]),
                "on" if row["spinning"] else "off",
                str(row["batch_size"]),
                format_energy(row["energy_j"]),
                *(f"{1e3 * row[key]:.2f}" for key in ("time_s", "cpu_s")),
                str(row["rounds"]),
                "chosen" if choice and all(row[key] == value for key, value in choice.items()) else "",
            ]
            for row in measured
        ]
        console.print(plain_table(f"{name}, one sample: {words}", columns, rows, left=()))
    if choice is None:
        console.print("nothing fits into memory: a finetune keeps its defaults")
        return
    saved = "" if result["saved"] is None else f" ({result['saved']:.0%} less than with all cores and the usual batch)"
    console.print(
        f"finetune will use threads {choice['threads']}, spinning {'on' if choice['spinning'] else 'off'}, "
        f"batch size {choice['batch_size']}{saved}"
    )
    console.print(f"remembered in {result['file']}")
