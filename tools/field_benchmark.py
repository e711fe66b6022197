"""The field benchmark: accuracy and joules of fine-tuning on a device's own images, against torch.

    python tools/field_benchmark.py --cifar ~/cifar10 --work ~/field --part val       # settings are chosen here
    python tools/field_benchmark.py --cifar ~/cifar10 --work ~/field --part test      # the final figures
    python tools/field_benchmark.py --work /tmp/short --short                         # a minute, without CIFAR-10

Every field shift is made from clean images (``field/cells.py``). The opponents in torch (``field_opponents.py``): a
dense fine-tune of ten epochs (a), the cheapest of four shorter ones that comes within half a point of the best of them
(b), the head only, statistics only, the last stage only. Ours: fixed plans, a random gate at our rate, and ``auto``.

Each system is one process from start to end. They take turns, one at a time, so that a noisy machine disturbs all
alike; CPU time and memory are the kernel's account, and accuracy is evaluated afterwards by one evaluator for all. A
finished run is a line in WORK/results.jsonl and is not repeated; what failed is tried again. The held-out families are
refused before the final figures.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any

from field import cells, experts, picture, report, results, systems
from field.measure import accuracy, measured

from edge_sel.config.profiles import Profile, detect_profile, load_profile
from edge_sel.errors import EXIT_INTERRUPTED, EdgeSelError, SetupError, UsageError

GROUPS = {
    "tuning": cells.TUNING,
    "held-out": cells.HELD_OUT,
    "streams": cells.STREAMS,
    "all": (*cells.CAMERA, *cells.STREAMS),
}
SHORT_SIZES = cells.Sizes(20, 20, 20)
SHORT_SHIFTS = "low_light,fog"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where packs, images, runs and results go")
    parser.add_argument("--cifar", type=Path, help="image-folder tree with train/ and test/")
    parser.add_argument("--part", choices=["val", "test"], default="val", help="what the systems are judged by")
    parser.add_argument("--shifts", help=f"{', '.join(GROUPS)}, or any of {','.join(cells.CAMERA)}")
    parser.add_argument("--seeds", type=numbers, help="[default: 0,1,2]")
    parser.add_argument("--systems", help=f"[default: all] of {','.join(systems.ALL)}; dense-2@sgd:0.01 changes one")
    parser.add_argument("--threads", type=int, default=1, help="of every system [default: 1]")
    parser.add_argument("--profile", help="device profile, for its meters and watts [default: detected]")
    parser.add_argument("--again", action="store_true", help="run even what has finished")
    parser.add_argument("--short", action="store_true", help="two shifts, one seed, few images of the built-in digits")
    parser.add_argument("--report", action="store_true", help="only print what has finished")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """``0,1,2``"""
    return [int(number) for number in text.split(",")]


def chosen_systems(arguments: argparse.Namespace) -> list[str]:
    """The systems to run.

    Raises:
        UsageError: there is none of that name.
    """
    names = (arguments.systems or ",".join(systems.SHORT if arguments.short else systems.ALL)).split(",")
    for name in names:
        systems.options(name)
    return names


def chosen_shifts(arguments: argparse.Namespace) -> list[str]:
    """The families to run.

    Raises:
        UsageError: no such family, or one that is held out.
    """
    default = SHORT_SHIFTS if arguments.short else "all" if arguments.part == "test" else "tuning"
    names = list(itertools.chain(*(GROUPS.get(n, (n,)) for n in (arguments.shifts or default).split(","))))
    for name in names:
        if name not in GROUPS["all"]:
            raise UsageError(f"no field shift named {name}", fix=f"one of {', '.join([*GROUPS, *GROUPS['all']])}")
        if name in cells.HELD_OUT and arguments.part == "val":
            fix = "--part test, once every setting has been chosen"
            raise UsageError("a held-out family is not for choosing settings", where=name, fix=fix)
    return names


def benchmark(arguments: argparse.Namespace, profile: Profile) -> None:
    """Run what has not finished, one system at a time."""
    work, threads = arguments.work, arguments.threads
    names, seeds = chosen_systems(arguments), arguments.seeds or ([0] if arguments.short else [0, 1, 2])
    if not arguments.short and arguments.cifar is None:
        raise UsageError("--cifar is missing", fix="name the folder with train/ and test/, or try --short")
    if arguments.short:
        sizes, pools, starter = SHORT_SIZES, cells.digits_pools(), partial(cells.digits_start, work=work)
    else:
        cifar = arguments.cifar.expanduser()
        sizes, pools = cells.Sizes(), cells.cifar_pools(cifar)
        starter = partial(cells.cifar_start, cifar=cifar, work=work)
    plan = list(itertools.product(seeds, chosen_shifts(arguments)))
    done = {} if arguments.again else results.load(work / "results.jsonl")
    for number, (seed, shift) in enumerate(plan):
        cell = cells.prepare(shift, seed, pools, sizes, work)
        turn = number % len(names)  # nobody is always the first
        for name in [*names[turn:], *names[:turn]]:
            start = starter(shift, robust=systems.is_robust(name))
            if place := systems.expert_place(name, cell):
                experts.make_expert(cells.prepare(place.shift, seed, pools, sizes, work), start)
            digest = systems.digest(name, start, sizes, threads)
            key = results.Key(arguments.part, shift, seed, name, digest)
            if key in done and not done[key].get("failed"):
                continue
            row = run(key, cell, start, threads, profile, work, again=arguments.again)
            results.append(work / "results.jsonl", row)
            text = row.get("failed") or f"{100 * row['accuracy']:.2f} %, {row['cpu_s']:.1f} s, {row['gross_j']:.0f} J"
            print(f"[{number + 1}/{len(plan)}] {shift}, seed {seed}, {name}: {text}", file=sys.stderr, flush=True)


def run(
    key: results.Key, cell: cells.Cell, start: cells.Start, threads: int, profile: Profile, work: Path, *, again: bool
) -> results.Row:
    """One system on one cell: what it cost, and how good it is; or why it failed."""
    row: dict[str, Any] = {**key._asdict(), "threads": threads, "options": systems.options(key.system)}
    familiar = cell.familiar(key.part)

    def judged(weights: Path | None) -> dict[str, float]:
        found = {"accuracy": accuracy(start.pack, weights, cell.images(key.part))}
        return found | ({} if familiar is None else {"familiar": accuracy(start.pack, weights, familiar)})

    if key.system.removesuffix(systems.ROBUST) == systems.SHIPPED:
        cost: dict[str, Any] = dict.fromkeys(("cpu_s", "wall_s", "rss_mb", "gross_j", "net_j"), 0.0)
        return {**row, **cost, **judged(None)}
    out = work / "runs" / f"{key.shift}-{key.seed}-{key.system.replace(':', '-')}-{key.digest}"
    cost = {} if again else results.load_cost(out)
    if not cost:
        results.clear(out)
        cost = measured(systems.command(key.system, cell, start, threads, out), out, profile, threads)
        status, words = cost.pop("exit"), cost.pop("last_words")
        if status:
            return {**row, "failed": words or f"exit status {status}"}
        results.save_cost(out, cost)
    return {**row, **cost, **judged(out / "weights.safetensors")}


def main() -> None:
    arguments = parse()
    arguments.work = arguments.work.expanduser()
    try:
        if not arguments.report:
            benchmark(arguments, load_profile(arguments.profile or detect_profile()))
        names = {*systems.ALL, *chosen_systems(arguments)}  # others were tried while settings were chosen
        rows = list(results.load(arguments.work / "results.jsonl").values())
        rows = results.latest([r for r in rows if r["system"] in names], arguments.part, arguments.threads)
        if not rows:
            raise UsageError("no results", where=arguments.work, fix="leave out --report")
        report.show(rows)
        report.write_csv(arguments.work / f"field-{arguments.part}.csv", rows)
        try:
            picture.draw(arguments.work / f"field-{arguments.part}.png", rows)
        except SetupError as error:
            print(f"field_benchmark: {error}", file=sys.stderr)
    except EdgeSelError as error:
        print(f"field_benchmark: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        print("field_benchmark: interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    main()
