"""Whether a change of the code changed what is computed: the same runs by an older revision and by this checkout.

    python tools/same_bits.py HEAD~1 [--only resumed]

Every case is run by both through the command line: weights, model, history, decisions and accuracies must be equal to
the bit. Time and joules are left out, as are reasons, which tell of joules. The reference systems are compared by their
tables. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CHANGES_WITH_TIME = {
    "time_s", "energy_j", "net_j", "energy_source", "meter", "power_w", "uncertainty_j", "phases", "temp_c", "why",
    "images_per_s", "throttled",
}  # fmt: skip
RESULTS = ("epochs", "decisions", "accuracy", "before", "after", "shipped", "plan", "classes", "images", "stopped")
SYSTEMS = ("baseline", "lottery-ticket", "sel-95", "warmup-sel", "ast", "dihcl-exp", "random", "infobatch",
           "selective-backprop", "fast")  # fmt: skip


class Case(NamedTuple):
    """Options of ``finetune``; with ``stop`` the run is sent that signal after so many checkpoints, then resumed."""

    name: str
    options: str
    stop: signal.Signals | None = None
    stop_after: int = 0


CASES = (
    Case("auto", "--seed 1"),
    Case("statistics and head, int8", "--plan bn,head --seed 2 --backbone-precision int8"),
    Case("last, staged, random gate", "--plan last --curriculum staged --epochs 6 --gate random --seed 3"),
    Case("a quarter of the channels", "--plan bn,last-c25 --curriculum cumulative --batch-size 16 --seed 4"),
    Case("all weights, no gate", "--plan full --gate off --gamma 0 --epochs 2 --seed 5"),
    Case("torch", "--engine torch --plan bn,last-c50 --epochs 2 --seed 6"),
    Case("features in a file, hard gate", "--plan last2 --gate hard --feature-cache-mb 0 --seed 7"),
    Case("no room for features, significance v101", "--plan last --significance v101 --seed 8 "
         "--feature-cache-mb 0 --feature-cache-disk-mb 0"),
    Case("resumed after SIGTERM", "--plan bn,last-c25,full --curriculum cumulative --seed 9", signal.SIGTERM, 12),
    Case("resumed after SIGKILL", "--plan head,last2 --feature-cache-mb 0 --epochs 6 --seed 10", signal.SIGKILL, 25),
    Case("torch, resumed", "--engine torch --plan last,affine --gate hard --seed 11", signal.SIGTERM, 20),
)  # fmt: skip


def run_case(checkout: Path, case: Case, out: Path) -> dict[str, Any]:
    """What a case leaves, without what depends on time."""
    precision = [] if "--backbone-precision" in case.options else ["--backbone-precision", "fp32"]  # auto goes by time
    command = [sys.executable, "-m", "edge_sel", "finetune", "--out", str(out), "--threads", "1", "--json"]
    command += [*precision, *case.options.split()]
    env = {**os.environ, "XDG_CACHE_HOME": os.devnull + "/none", "PYTHONPATH": str(checkout)}
    if case.stop is None:
        subprocess.run(command, cwd=checkout, env=env, check=True, stdout=subprocess.DEVNULL)
    else:
        command += ["--checkpoint-every", "0.001s"]
        _stop_inside(command, checkout, env, case, out / "events.jsonl")
        subprocess.run([*command, "--resume"], cwd=checkout, env=env, check=True, stdout=subprocess.DEVNULL)
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    hashes: dict[str, Any] = {name: _hash(out / name) for name in ("weights.safetensors", "model.onnx")}
    hashes["history.csv"] = _table(out / "history.csv")
    for key in RESULTS:
        hashes[key] = _timeless(run[key])
    return hashes


def _stop_inside(command: list[str], checkout: Path, env: dict[str, str], case: Case, events: Path) -> None:
    assert case.stop is not None
    running = subprocess.Popen(command, cwd=checkout, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None:
        text = events.read_text(encoding="utf-8") if events.exists() else ""
        if text.count('"checkpoint"') >= case.stop_after:
            running.send_signal(case.stop)
            break
        time.sleep(0.002)
    if running.wait() == 0:
        raise SystemExit(f"{case.name}: the run ended before it could be stopped; raise its epochs")


def run_reference(checkout: Path, out: Path) -> dict[str, Any]:
    """The tables of the reference systems on the built-in digits."""
    command = [sys.executable, "-m", "edge_sel", "reference", *SYSTEMS, "--smoke", "--device", "cpu", "--out", str(out)]
    subprocess.run([*command, "--json"], cwd=checkout, check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)})  # fmt: skip
    return {system: _table(out / system / "seed-0" / "history.csv") for system in SYSTEMS}


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [_timeless(row) for row in csv.DictReader(file)]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in CHANGES_WITH_TIME}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def older(revision: str) -> Iterator[Path]:
    """A checkout of the revision, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch) / "before"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", at, revision], cwd=ROOT, check=True)
        try:
            yield at
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", at], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="of git, to compare with")
    parser.add_argument("--only", default="", help="cases whose name contains this; 'reference' for the systems")
    given = parser.parse_args()
    wanted = [case for case in CASES if given.only in case.name]
    different = False
    with older(given.revision) as before, tempfile.TemporaryDirectory() as scratch:
        jobs = [(case.name, lambda at, out, case=case: run_case(at, case, out)) for case in wanted]
        if given.only in "reference systems":
            jobs.append(("reference systems", run_reference))
        for number, (name, job) in enumerate(jobs):
            old, new = (job(at, Path(scratch) / f"{number}-{at.name}") for at in (before, ROOT))
            changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            different |= bool(changed)
            print(f"{'DIFFERENT' if changed else 'same':9}  {name}{': ' + ', '.join(changed) if changed else ''}")
            sys.stdout.flush()
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
