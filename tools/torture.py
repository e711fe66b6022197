"""What interruptions do to runs: killed at random, or cut off at every write, rename, fsync and removal.

    python tools/torture.py --kills 200 --faults          # 10 to 15 minutes on one core
    python tools/torture.py --faults 40 --seed 3          # 40 runs, evenly spread over all calls and faults
    python tools/torture.py --long 12                     # kills in runs of some twenty seconds, for their joules
    python tools/torture.py --leak 60                     # an hour of sessions in one process
    python tools/torture.py --links                       # a link of each kind at every name that a run writes

Every run is ``edge-sel finetune`` on the built-in digits, in processes of its own. After each interruption the run is
resumed until it ends; the part that follows a fault has another one at random. A run is lost if it cannot be brought
to its end; ``weights.safetensors`` and ``model.onnx`` are compared with those of the same run without interruption,
bit for bit. Seconds and joules in ``run.json`` stand beside what all processes of the run took together: *missing*
is the share that the run did not book of what they took from their start to their end, *metered* of what they took
from the opening of their books, which Python's start and imports precede, to their closing or their end.
``tools/abuse/faults.py`` lists the faults; after ``power``, what was not forced onto the disk is gone.

Exit status 1 if a run was lost, a bit differs, sessions leak, or something was written through a link.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from abuse.faults import KINDS, MODES
from abuse.leak import leaks
from abuse.links import plant_everywhere
from abuse.runs import FAULTY, KILLED_AT_RANDOM, LONG, Fault, Verdict, Victim, own_meter, small_field

from edge_sel.power.recorder import EnergyRecorder

MOST_KILLS = 4
"""Of one run, before it is let go."""


def random_kills(
    victims: Sequence[Victim], kills: int, rng: np.random.Generator, what: str = "kill -9 at a random moment"
) -> Iterator[Verdict]:
    """Runs that are killed so many times in all."""
    while kills > 0:
        victim = victims[int(rng.integers(len(victims)))]
        most = min(kills, int(rng.integers(1, MOST_KILLS + 1)))
        verdict = victim.killed_at(rng.uniform(0, victim.seconds, most).tolist(), what)
        kills -= verdict.hit
        yield verdict


def all_faults(victim: Victim) -> list[Fault]:
    """Every mode at every call where it means something."""
    return [
        Fault(mode, number)
        for mode in MODES
        for number, (kind, _) in enumerate(victim.calls, 1)
        if mode != "torn" or kind == "write"
    ]


def with_second(faults: Sequence[Fault], count: int, rng: np.random.Generator) -> Iterator[list[Fault]]:
    """So many of them, evenly spread, each with one more at random for the part that resumes the run."""
    places = np.linspace(0, len(faults) - 1, min(count, len(faults))).round()
    for first in (faults[int(place)] for place in places):
        second = faults[int(rng.integers(len(faults)))]
        yield [first, second._replace(number=int(rng.integers(1, second.number + 1)))]


def share_missing(booked: Iterable[float | None], spent: Iterable[float | None]) -> str:
    """How much of what was spent nobody has booked."""
    recorded, took = list(booked), list(spent)
    if None in recorded or None in took or not sum(took):  # type: ignore[arg-type]
        return "unknown"
    return f"{1 - sum(recorded) / sum(took):.1%}"  # type: ignore[arg-type]


def row(what: str, verdicts: Sequence[Verdict]) -> str:
    """A line of the table."""
    parts = [part for verdict in verdicts for part in verdict.parts]
    spent_s = sum(part.spent.seconds for part in parts)
    ended = [verdict for verdict in verdicts if not verdict.lost]
    whole = [part for verdict in ended for part in verdict.parts]
    booked_s, booked_j = [v.booked_s for v in ended], [v.booked_j for v in ended]
    shares = [
        share_missing(booked_s, (part.spent.seconds for part in whole)),
        share_missing(booked_j, (part.spent.joules for part in whole)),
        share_missing(booked_s, (part.metered.seconds for part in whole)),
        share_missing(booked_j, (part.metered.joules for part in whole)),
    ]
    lost, bits = sum(bool(v.lost) for v in verdicts), sum(v.different_bits for v in verdicts)
    counts = f"{len(verdicts):5} | {sum(v.hit for v in verdicts):5} | {lost:4} | {bits:5} | {len(parts):5}"
    return f"| {what:26} | {counts} | {spent_s:7.1f} | " + " | ".join(f"{share:>10}" for share in shares) + " |"


def table(victims: Sequence[Victim], verdicts: Sequence[Verdict]) -> str:
    """All of it; the first row is what even an uninterrupted run does not book, such as Python's own start."""
    by_kind = defaultdict(list)
    for verdict in verdicts:
        by_kind[verdict.what].append(verdict)
    lines = [
        f"| {'':26} |  runs |  hits | lost |  bits | parts | spent s "
        "|  missing s |  missing J | metered, s | metered, J |",
        f"|{'-' * 28}|------:|------:|-----:|------:|------:|--------:{'|-----------:' * 4}|",
        row("uninterrupted", [victim.whole for victim in victims]),
        *(row(what, found) for what, found in by_kind.items()),
    ]
    if len(by_kind) > 1:
        lines.append(row("all that were interrupted", verdicts))
    return "\n".join(lines)


def torture(
    kills: int, long: int, faults: int, rng: np.random.Generator, scratch: Path, recorder: EnergyRecorder
) -> bool:
    """Interrupt runs and print what became of them; whether all is well."""
    victims: list[Victim] = []
    verdicts: list[Verdict] = []

    def note(found: Iterable[Verdict]) -> None:
        for verdict in found:
            verdicts.append(verdict)
            if verdict.lost or verdict.different_bits:
                print(f"{verdict.what}: {verdict.lost or f'{verdict.different_bits} bits differ'}", flush=True)
            if sys.stderr.isatty():
                print(f"\r{len(verdicts)} runs, {verdict.what:40}", end="", file=sys.stderr)

    if kills:
        chosen = [
            Victim(options, scratch / f"killed-{number}", None, recorder)
            for number, options in enumerate(KILLED_AT_RANDOM)
        ]
        victims += chosen
        note(random_kills(chosen, kills, rng))
    if long:
        victim = Victim(LONG, scratch / "long", None, recorder)
        victims.append(victim)
        note(random_kills([victim], long, rng, "kill -9 in a longer run"))
    if faults:
        victim = Victim(FAULTY, scratch / "faulty", small_field(scratch / "images"), recorder)
        victims.append(victim)
        unseen = set(KINDS) - {kind for kind, _ in victim.calls}
        if unseen:
            raise SystemExit(f"no {' and no '.join(sorted(unseen))} was seen: this tool is blind for it on this Python")
        note(map(victim.with_faults, with_second(all_faults(victim), faults, rng)))
    print(table(victims, verdicts))
    return not any(verdict.lost or verdict.different_bits for verdict in verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=0, help="how many kill -9 at random moments")
    parser.add_argument("--long", type=int, default=0, help="how many of them in runs of some twenty seconds")
    parser.add_argument(
        "--faults",
        type=int,
        nargs="?",
        const=sys.maxsize,
        default=0,
        help="how many runs whose disk fails; all without N",
    )
    parser.add_argument("--leak", type=float, metavar="MINUTES", help="sessions in one process for so long")
    parser.add_argument("--links", action="store_true", help="plant a link at every name")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not (given.kills or given.long or given.faults or given.leak or given.links):
        parser.error("say what to do: --kills, --long, --faults, --leak or --links")
    well = True
    with tempfile.TemporaryDirectory() as scratch:
        if given.kills or given.long or given.faults:
            rng = np.random.default_rng(given.seed)
            with own_meter() as recorder:
                well = torture(given.kills, given.long, given.faults, rng, Path(scratch), recorder)
        if given.links:
            findings = plant_everywhere(Path(scratch) / "links")
            print(*findings, sep="\n")
            well &= not findings
        if given.leak:
            well &= leaks(given.leak * 60, Path(scratch) / "leak")
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
