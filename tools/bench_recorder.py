"""What recording energy costs: processor time of a fine-tune with and without it, and of a recorder beside a sleep.

    python tools/bench_recorder.py [--pairs 10] [--epochs 40] [--meter psutil] [--sleep 30] [--json FILE]

The same built-in fine-tune in fresh processes, with the recorder and without (no meter, no threads), in turn; who
begins changes from pair to pair. The ratio is that of the medians; its spread is that of the pairs' own ratios.
Then this process sleeps under a recorder at 10 Hz: what it used meanwhile is the recorder's, helper threads included.
At last the switching of phases, which both kinds of run do. Percentages are of one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

SWITCHES = 20_000


def open_recorder(meter: str | None) -> Any:
    """As ``edge-sel finetune`` has it; one that does nothing for None."""
    from edge_sel.config.profiles import detect_profile, load_profile
    from edge_sel.power.find import find_meter
    from edge_sel.power.recorder import EnergyRecorder
    from edge_sel.power.temperature import find_thermometer

    if meter is None:
        return EnergyRecorder(None, background=False, temperature=lambda: None)
    profile = load_profile(detect_profile())
    found, probes = find_meter(profile, meter)
    if found is None:
        raise SystemExit(f"no meter: {'; '.join(f'{probe.name}: {probe.why}' for probe in probes)}")
    return EnergyRecorder(found, profile=profile, temperature=find_thermometer())


def finetune(meter: str | None, epochs: int) -> dict[str, float]:
    """Seconds of the session alone: the imports, the pack and the images are there before."""
    from edge_sel.api.inputs import load_images
    from edge_sel.config.settings import resolve
    from edge_sel.edge.build import build_session
    from edge_sel.edge.open import RunInputs
    from edge_sel.edge.train.schedule import fixed_schedule
    from edge_sel.engines.by_name import choose_engine
    from edge_sel.pack.reader import builtin_pack

    resolved = resolve(flags={"epochs": epochs, "threads": 1})
    pack = builtin_pack()
    images, test, source = load_images(pack, None, None, resolved.settings)
    schedule = fixed_schedule(pack, resolved.settings.plan, epochs)
    engine, recorder = choose_engine("auto", 1), open_recorder(meter)
    with tempfile.TemporaryDirectory() as scratch:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        with recorder:
            given = RunInputs(
                pack, images, engine, resolved, recorder, Path(scratch), test=test, schedule=schedule, source=source
            )
            build_session(given).run()
        return {"wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - began_cpu_s}


def in_new_process(meter: str | None, epochs: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", meter or "none", "--epochs", str(epochs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(meter: str, epochs: int, pairs: int) -> dict[str, Any]:
    """Processor seconds with and without, and how much more the one is."""
    runs: dict[str | None, list[dict[str, float]]] = {meter: [], None: []}
    for number in range(pairs):
        for kind in (meter, None) if number % 2 else (None, meter):
            runs[kind].append(in_new_process(kind, epochs))
    cpu_s = {kind: [run["cpu_s"] for run in found] for kind, found in runs.items()}
    ratios = [a / b for a, b in zip(cpu_s[meter], cpu_s[None], strict=True)]
    return {
        "pairs": pairs,
        "epochs": epochs,
        "with": {"cpu_s": cpu_s[meter], "median_cpu_s": median(cpu_s[meter])},
        "without": {"cpu_s": cpu_s[None], "median_cpu_s": median(cpu_s[None])},
        "wall_s": median(run["wall_s"] for run in runs[None]),
        "ratio_of_medians": median(cpu_s[meter]) / median(cpu_s[None]),
        "ratio_quartiles": quartiles(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def quartiles(values: Sequence[float]) -> list[float]:
    return [values[0]] * 2 if len(values) < 2 else [quantiles(values, n=4)[i] for i in (0, 2)]


def asleep(meter: str, seconds: float) -> dict[str, float]:
    """Shares of a core that a recorder takes beside a process that does nothing."""
    with open_recorder(meter) as recorder:
        window = recorder.start_window("asleep")
        time.sleep(1.1)  # whatever is imported or read for the first time has been
        reported_s, began_s, began_cpu_s = recorder.cost().cpu_s, time.perf_counter(), time.process_time()
        time.sleep(seconds)
        cpu_s, wall_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
        reported_s = recorder.cost().cpu_s - reported_s
        figure = recorder.end_window(window)
    return {
        "seconds": wall_s,
        "samples": figure.samples,
        "percent": 100 * cpu_s / wall_s,
        "told_percent": 100 * reported_s / wall_s,
    }


def switching(meter: str) -> float:
    """Microseconds of one change of phase, two of which make a ``with`` block."""
    with open_recorder(meter) as recorder:
        took_s = []
        for _ in range(5):
            began_s = time.perf_counter()
            for _ in range(SWITCHES):
                with recorder.phase("train"):
                    pass
            took_s.append(time.perf_counter() - began_s)
    return min(took_s) / SWITCHES / 2 * 1e6


def show(result: dict[str, Any]) -> None:
    pairs, sleep = result["finetune"], result["asleep"]
    low, high = pairs["ratio_quartiles"]
    print(f"{result['machine']}, Python {result['python']}, meter {result['meter']}")
    print(f"fine-tune, n={pairs['pairs']} pairs, {pairs['epochs']} epochs per plan, {pairs['wall_s']:.1f} s")
    print(f"  CPU with     {pairs['with']['median_cpu_s']:8.3f} s")
    print(f"  CPU without  {pairs['without']['median_cpu_s']:8.3f} s")
    print(f"  ratio        {pairs['ratio_of_medians']:8.4f}   pairs: quartiles {low:.4f} to {high:.4f}")
    print(f"recorder beside {sleep['seconds']:.0f} s of sleep, {sleep['samples']} samples")
    print(f"  CPU          {sleep['percent']:8.3f} % of a core; it tells of itself {sleep['told_percent']:.3f} %")
    print(f"change of phase{result['switch_us']:8.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=40, help="in each plan of the default run")
    parser.add_argument("--meter", default="psutil")
    parser.add_argument("--sleep", type=float, default=30.0, help="seconds")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(finetune(None if given.child == "none" else given.child, given.epochs)))
        return
    result = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "meter": given.meter,
        "finetune": compare(given.meter, given.epochs, given.pairs),
        "asleep": asleep(given.meter, given.sleep),
        "switch_us": switching(given.meter),
    }
    show(result)
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
