"""Which threads, spinning and batch size take the fewest joules: the choice, and the file that remembers its reasons.

``edge-sel tune`` writes one file per pack and engine. A file from another machine, or a damaged one, is not used.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from edge_sel.config.settings import Resolved
from edge_sel.files import cache_folder, cannot_write, read_regular, write_durably

from edge_sel.runs.lock import hold_lock
from edge_sel.sysfs import board_model, sysfs_root

SCHEMA = 1
LARGEST = 1 << 26
"""Bytes of a file that is read at all."""
TIE = 0.05
"""Candidates whose costs differ by less cost the same: short measurements tell no more."""
REACH = 2
"""How many times larger or smaller a batch may become: accuracy hardly changes so far, and the learning rate suits."""


class Candidate(NamedTuple):
    """Settings that change what a sample costs and hardly what is learned from it."""

    threads: int
    spinning: bool
    batch_size: int


class Cost(NamedTuple):
    """Of one sample of a training step: gross joules (None where no meter works), seconds, processor seconds.

    Medians over ``rounds``; who has fewer of them than others was given up as hopeless.
    """

    energy_j: float | None
    time_s: float
    cpu_s: float
    rounds: int


Costs = Mapping[str, Mapping[Candidate, Cost]]
"""Plan → what its candidates cost."""


def total_costs(costs: Costs, plans: Collection[str] | None = None) -> dict[Candidate, float]:
    """The sum over the plans (None: all that were measured) for every candidate that was measured with each of them.

    One that was given up keeps what it cost until then: hopeless with a cheap plan, it may be the best with a dear one.
    In joules; in processor seconds if the joules of any are not known.
    """
    chosen = [costs[plan] for plan in costs if plans is None or plan in plans]
    shared = [c for c in (chosen[0] if chosen else ()) if all(c in told for told in chosen)]
    joules = all(told[c].energy_j is not None for told in chosen for c in shared)
    return {c: sum((told[c].energy_j or 0.0) if joules else told[c].cpu_s for told in chosen) for c in shared}


def choose(totals: Mapping[Candidate, float], batch_size: int, given: Mapping[str, Any]) -> Candidate | None:
    """The cheapest candidate; of those that cost the same the plainest: fewest threads, no spinning, nearest batch.

    Args:
        totals: candidate → cost.
        batch_size: of the run, if it is not tuned.
        given: what the user decided, among ``threads``, ``spinning`` and ``batch_size``; it is not chosen against.
    """

    def away(size: int) -> float:
        return abs(math.log2(size / batch_size))

    reach = math.log2(REACH)
    if "batch_size" in given:  # that size may not have been tried: the nearest one tells which threads suit it
        reach = min((away(c.batch_size) for c in totals), default=0.0)
    fixed = {key: value for key, value in given.items() if key != "batch_size"}
    able = [
        c for c in totals if away(c.batch_size) <= reach and all(getattr(c, k) == value for k, value in fixed.items())
    ]
    if not able:
        return None
    enough = min(totals[c] for c in able) * (1 + TIE)
    tied = [c for c in able if totals[c] <= enough]
    return min(tied, key=lambda c: (c.threads, c.spinning, away(c.batch_size), totals[c]))


def tuned_settings(resolved: Resolved, costs: Costs, plan: str) -> dict[str, Any]:
    """The settings that measurement decides in a run: those that the user left to the default or the profile.

    Args:
        resolved: the settings without tuning.
        costs: what was measured.
        plan: of the run, as in the settings; of ``auto`` all plans count.
    """
    given = {
        key: getattr(resolved.settings, key)
        for key in Candidate._fields
        if not resolved.origins[key].startswith(("default", "profile:"))
    }
    totals = total_costs(costs, None if plan == "auto" else [name.strip() for name in plan.split(",")])
    found = choose(totals, resolved.settings.batch_size, given)
    return {} if found is None else {key: value for key, value in found._asdict().items() if key not in given}


def machine(profile: str, cores: int, root: Path = Path("/")) -> dict[str, Any]:
    """What the figures hold for: processor, cores that may be used, ONNX Runtime and profile.

    ``root`` stands in for ``/`` in tests.
    """
    from edge_sel.engines.native import ort

    told = ""
    with suppress(OSError):
        told = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^model name\s*:\s*(.*)$", told, re.MULTILINE)
    cpu = match[1].strip() if match else board_model(sysfs_root(root=root), root)
    return {
        "processor": cpu or platform.processor() or platform.machine(),
        "cores": cores,
        "onnxruntime": ort.__version__,
        "profile": profile,
    }


def tuning_file(pack: str, engine: str, environ: Mapping[str, str]) -> Path | None:
    """Where the figures of a pack (its digest) are kept: ``$XDG_CACHE_HOME`` or ``~/.cache``; None without a home."""
    folder = cache_folder(environ, "tuning")
    return None if folder is None else folder / f"{pack}-{engine}.json"


def write_tuning(path: Path, costs: Costs, here: Mapping[str, Any], meter: Mapping[str, Any]) -> None:
    """Remember what was measured, beside what the same meter has told of other plans on this machine.

    Raises:
        SetupError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):  # another tune may be adding its plans
            known, _ = read_tuning(path, here, meter)
            plans = {
                plan: [{**candidate._asdict(), **cost._asdict()} for candidate, cost in told.items()]
                for plan, told in {**(known or {}), **costs}.items()
            }
            body = {"schema": SCHEMA, "machine": dict(here), "meter": dict(meter), "plans": plans}
            write_durably(path, (json.dumps(body, indent=1) + "\n").encode())
    except OSError as error:
        raise cannot_write(path, error) from error


def read_tuning(
    path: Path, here: Mapping[str, Any], meter: Mapping[str, Any] | None = None
) -> tuple[Costs | None, str | None]:
    """What is remembered; None where there is nothing of use, and a line that says why if there is a file.

    With ``meter``, only figures of that one are of use.
    """
    try:
        body = json.loads(read_regular(path, LARGEST))
        if body["schema"] != SCHEMA:
            return None, f"another edge-sel wrote it (schema {body['schema']!r}): {path}"
        found = {key: body["machine"].get(key) for key in here}
        different = [f"{key} {found[key]}, here {value}" for key, value in here.items() if found[key] != value]
        if different:
            return None, f"it was measured elsewhere ({'; '.join(different)}): {path}"
        if meter is not None and body["meter"] != meter:
            return None, f"another meter measured it: {path}"
        return {plan: dict(map(_entry, told)) for plan, told in body["plans"].items()}, None
    except (FileNotFoundError, PermissionError):  # a service may not even look into a home
        return None, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"it cannot be read ({type(error).__name__}: {error}): {path}"


def _entry(told: Mapping[str, Any]) -> tuple[Candidate, Cost]:
    """One candidate of a file.

    Raises:
        ValueError: a value is not what ``write_tuning`` writes.
        KeyError: one is missing.
    """
    candidate = Candidate(*(told[key] for key in Candidate._fields))
    cost = Cost(*(told[key] for key in Cost._fields))
    counts = (candidate.threads, candidate.batch_size, cost.rounds)
    if type(candidate.spinning) is not bool or not all(type(count) is int and count > 0 for count in counts):
        raise ValueError(f"not a candidate: {candidate}")
    numbers = (cost.time_s, cost.cpu_s, 0.0 if cost.energy_j is None else cost.energy_j)
    if not all(type(value) in (int, float) and 0 <= value < math.inf for value in numbers):
        raise ValueError(f"not a cost: {cost}")
    return candidate, cost
