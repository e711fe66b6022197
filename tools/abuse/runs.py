"""A run in parts: each a process of its own that is killed, loses its disk, or comes to its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_sel.config.profiles import detect_profile, load_profile
from edge_sel.data.builtin import load_digits
from edge_sel.data.shifts import apply_shift, write_folder
from edge_sel.edge.open import LOCK
from edge_sel.errors import SetupError
from edge_sel.power.find import find_meter
from edge_sel.power.recorder import EnergyRecorder, clock_through_sleep

ROOT = Path(__file__).resolve().parents[2]
PACK = ROOT / "edge_sel" / "pack" / "assets" / "digits.edgepack"
RESULTS = ("weights.safetensors", "model.onnx")
ALWAYS = "--feature-store off --threads 1 --backbone-precision fp32 --json"
"""A precision that a clock does not choose: runs are compared to the bit."""

KILLED_AT_RANDOM = (
    "--plan bn,last-c25 --curriculum cumulative --feature-cache-mb 0 --checkpoint-every 0.02s --seed 1",
    "--plan closed_form --checkpoint-every 0.02s --seed 2",
    "--plan auto --min-gain-per-kj 0 --checkpoint-every 0.05s --seed 3",
    "--plan head,full --epochs 1 --batch-size 64 --checkpoint-every 0.1s --seed 4",
)
"""On the built-in digits. ``auto`` at a worth that asks for no price, since a price is a matter of joules."""
LONG = "--plan bn,full --epochs 80 --batch-size 16 --checkpoint-every 5s --seed 5"
"""Some twenty seconds: a process books its joules every tenth of a second, and every five if it has run for minutes."""
FAULTY = "--plan head,last-c25 --epochs 1 --batch-size 32 --feature-cache-mb 0 --checkpoint-every 0.000001s"
"""On 80 of the digits; a checkpoint at every step, so that each run makes the same calls. Features go to a file."""


LOOK_S = 0.002
"""Between two looks at what a process does."""


class Fault(NamedTuple):
    """What happens to the disk at which call of a process; see ``faults.py``."""

    mode: str
    number: int

    def __str__(self) -> str:
        return f"{self.mode} at call {self.number}"


class Spent(NamedTuple):
    """What a stretch of time took."""

    seconds: float
    joules: float | None
    """Gross, of the whole device, by this tool's own meter; None if there is none."""


class Part(NamedTuple):
    """What a process did."""

    status: int
    """Its exit status, negative if a signal ended it."""
    spent: Spent
    """From its start to its end."""
    metered: Spent
    """From the opening of its books to their closing, or to its end."""
    last_line: str
    """Of its stderr."""

    @property
    def killed(self) -> bool:
        """Whether it was ended by SIGKILL."""
        return self.status == -signal.SIGKILL


class Watch:
    """Measures from now on."""

    def __init__(self, recorder: EnergyRecorder | None) -> None:
        self._recorder, self._began_s = recorder, time.monotonic()
        self._window = None if recorder is None else recorder.start_window("part")

    def seconds(self) -> float:
        """Until now."""
        return time.monotonic() - self._began_s

    def end(self) -> Spent:
        """What it came to."""
        seconds = self.seconds()
        if self._recorder is None or self._window is None:
            return Spent(seconds, None)
        return Spent(seconds, self._recorder.end_window(self._window).total_j)


@dataclass
class Verdict:
    """What a run that was interrupted left, beside one that was not."""

    what: str
    parts: list[Part] = field(default_factory=list)
    hit: int = 0
    """How many of its parts were really interrupted."""
    lost: str = ""
    """Why the run could not be brought to its end, or what else no interruption excuses."""
    different_bits: int = 0
    booked_s: float = 0.0
    booked_j: float | None = 0.0


class Victim:
    """A run that can be started again and again, with what it leaves when nobody interrupts it.

    Args:
        options: of ``finetune``.
        scratch: a folder for what the runs leave.
        data: images to train on; None for the built-in ones.
        recorder: measures each part; None where nobody asks for joules.
    """

    def __init__(self, options: str, scratch: Path, data: Path | None, recorder: EnergyRecorder | None) -> None:
        self._options, self._scratch, self._recorder = options, scratch, recorder
        self._images = [] if data is None else [str(PACK), "--data", str(data)]
        scratch.mkdir(parents=True, exist_ok=True)
        self.log = scratch / "calls"
        self.whole = Verdict("uninterrupted")
        with self.folder() as out:
            self.whole.parts.append(self.part(out, fault=Fault("count", 0)))
            if self.whole.parts[0].status:
                raise SystemExit(f"{options}: {self.whole.parts[0].last_line}")
            self._booked(self.whole, out)
            self._expected = {name: (out / name).read_bytes() for name in RESULTS}
        self.calls = [tuple(line.split(" ", 2)[1:]) for line in self.log.read_text(encoding="utf-8").splitlines()]

    @property
    def seconds(self) -> float:
        """Of the run that nobody interrupted."""
        return self.whole.parts[0].spent.seconds

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """For one run, which is removed with all that it left."""
        out = self._scratch / "run"
        shutil.rmtree(out, ignore_errors=True)
        yield out
        shutil.rmtree(out, ignore_errors=True)

    def part(self, out: Path, *, kill_after_s: float | None = None, fault: Fault | None = None) -> Part:
        """Start the run, or go on with it, in a process that may be killed or lose its disk."""
        stamps = self._scratch / "stamps"
        stamps.write_bytes(b"")
        program, given = "stamps.py", [str(stamps)]
        if fault is not None:
            self.log.unlink(missing_ok=True)
            program, given = "faults.py", [fault.mode, str(fault.number), str(out), str(self.log), str(stamps)]
        command = [sys.executable, str(Path(__file__).with_name(program)), *given]
        command += ["finetune", *self._images, "--out", str(out), "--resume", *ALWAYS.split(), *self._options.split()]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_SEL_")}
        env = {**kept, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self._scratch), "OMP_NUM_THREADS": "1"}
        with (self._scratch / "stderr").open("w+", encoding="utf-8") as errors:
            whole, metered, seen = self._watch(), None, b""
            process = subprocess.Popen(command, cwd=self._scratch, env=env, stdout=subprocess.DEVNULL, stderr=errors)
            while process.poll() is None:
                if kill_after_s is not None and whole.seconds() > kill_after_s:
                    process.kill()
                    process.wait()
                elif (now := stamps.read_bytes()) != seen:
                    seen = now
                    metered = self._watch() if seen.endswith(b"o") else metered and metered.end()
                else:
                    time.sleep(LOOK_S)
            took = (metered.end() if isinstance(metered, Watch) else metered) or Spent(0.0, 0.0)
            errors.seek(0)
            return Part(process.returncode, whole.end(), took, (errors.read().strip().splitlines() or [""])[-1])

    def _watch(self) -> Watch:
        return Watch(self._recorder)

    def killed_at(self, moments_s: Sequence[float], what: str = "kill -9 at a random moment") -> Verdict:
        """Start, kill after so many seconds, go on, kill …, and let it come to its end."""
        verdict = Verdict(what)
        with self.folder() as out:
            for moment_s in (*moments_s, None):
                verdict.parts.append(self.part(out, kill_after_s=moment_s))
                verdict.hit += verdict.parts[-1].killed
                if not verdict.parts[-1].killed:
                    break
            return self._judge(verdict, out)

    def with_faults(self, faults: Sequence[Fault]) -> Verdict:
        """Let the disk fail at a call of the first part, of the second …, then let the run come to its end."""
        kind, place = self.calls[faults[0].number - 1]
        verdict, where = Verdict(f"{faults[0].mode} at {kind}"), " after " + ", then ".join(map(str, faults))
        with self.folder() as out:
            for fault in faults:
                part = self.part(out, fault=fault)
                verdict.parts.append(part)
                full = fault.mode == "full" and part.status == SetupError.exit_code
                verdict.hit += part.killed or full
                if not (part.killed or full):
                    if part.status:
                        verdict.lost = f"status {part.status}{where}: {part.last_line}"
                    break  # it came to its end before that call
            stays = faults[0].mode == "full" and place == LOCK  # it names a process that is gone: the next run takes it
            if not verdict.hit and not verdict.lost and not stays:
                verdict.lost = f"call {faults[0].number} ({kind} {place}) hurt nothing: this tool is blind for it"
            verdict.parts.append(self.part(out))
            return self._judge(verdict, out, f"{where} (the first is {kind} {place})")

    def _judge(self, verdict: Verdict, out: Path, where: str = "") -> Verdict:
        last = verdict.parts[-1]
        if last.status or not (out / "run.json").exists():
            verdict.lost = verdict.lost or f"status {last.status}{where}: {last.last_line}"
            return verdict
        for name, expected in self._expected.items():
            verdict.different_bits += differing_bits(expected, (out / name).read_bytes())
        self._booked(verdict, out)
        return verdict

    def _booked(self, verdict: Verdict, out: Path) -> None:
        result = json.loads((out / "run.json").read_text(encoding="utf-8"))
        verdict.booked_s, verdict.booked_j = result["time_s"], result["energy"]["total_j"]


def differing_bits(one: bytes, other: bytes) -> int:
    """How many bits differ; bytes that only one of them has count in full."""
    shared = min(len(one), len(other))
    a, b = (np.frombuffer(content[:shared], np.uint8) for content in (one, other))
    return int(np.unpackbits(a ^ b).sum()) + 8 * (max(len(one), len(other)) - shared)


def small_field(folder: Path) -> Path:
    """80 digits as image files."""
    write_folder(apply_shift("field_camera", load_digits("field"), seed=0).subset(np.arange(80)), folder)
    return folder


@contextmanager
def own_meter() -> Iterator[EnergyRecorder]:
    """The meter that the runs would take, for all that they spend, counted or not."""
    profile = load_profile(detect_profile())
    meter, _ = find_meter(profile, "auto", on_processor=True)
    with EnergyRecorder(meter, clock_through_sleep, profile=profile) as recorder:
        yield recorder
