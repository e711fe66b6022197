"""The same fine-tuning run on the processor and on the GPU, by each engine: accuracy, seconds, joules.

    python tools/gpu/finetune_check.py                                          # built-in digits
    python tools/gpu/finetune_check.py --pack my.edgepack --data DIR --test DIR

Each run is a process of `edge-sel finetune` of its own. An engine that cannot use the GPU here says why. One JSON
object on stdout. The joules are those of the meter that is named: on the GPU NVML's, of the card alone, without the
processor; on the processor modelled ones. They are not to be compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RUNS = (("ort", "cpu"), ("ort", "cuda"), ("torch", "cpu"), ("torch", "cuda"))


def finetune(engine: str, device: str, plan: str, given: list[str], folder: Path) -> dict[str, Any]:
    """What one run came to; or ``why`` not."""
    words = [sys.executable, "-m", "edge_sel", "finetune", *given, "--engine", engine, "--device", device]
    words += ["--plan", plan, "--out", str(folder / f"{engine}-{device}-{plan}"), "--json"]
    process = subprocess.run(words, capture_output=True, text=True)
    if process.returncode != 0:
        return {"exit": process.returncode, "why": process.stderr.strip().splitlines()[-1:]}
    found = json.loads(process.stdout)
    energy = found["energy"]
    phases = {name: round(phase["seconds"], 2) for name, phase in energy["phases"].items()}
    return {
        "accuracy": found["accuracy"],
        "seconds": round(found["time_s"], 2),
        "total_j": energy["total_j"],
        "net_j": energy["net_j"],
        "source": energy["source"],
        "meter": energy["meter"],
        "seconds_of": phases,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", help="of any network [default: the built-in one]")
    parser.add_argument("--data", help="labelled images")
    parser.add_argument("--test", help="labelled images to judge by")
    parser.add_argument("--plans", default="auto,last", help="one run each")
    parser.add_argument("--runs", default=",".join(f"{e}:{d}" for e, d in RUNS), help="engine:device, comma-separated")
    options = parser.parse_args()
    if wrong := set(options.runs.split(",")) - {f"{e}:{d}" for e, d in RUNS}:
        parser.error(f"no such run: {', '.join(sorted(wrong))} (engine:device)")
    given = [options.pack] if options.pack else []
    for name in ("data", "test"):
        given += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
    with tempfile.TemporaryDirectory() as folder:
        found = {
            f"{run} {plan}": finetune(*run.split(":"), plan, given, Path(folder))
            for plan in options.plans.split(",")
            for run in options.runs.split(",")
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
