"""Whether NVML's energy counter, its sampled power and Zeus agree, while a GPU idles and while it works.

    python tools/gpu/nvml_check.py --seconds 60

Each phase is one window of ``edge_sel.EnergyMonitor`` with the meter ``nvml``. In the same window the power is sampled
ten times a second and summed by trapezoids; where ``zeus`` is installed, its monitor measures the window too. One JSON
object on stdout: joules of each, and their difference to the counter in per cent.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from edge_sel import EnergyMonitor
from edge_sel.errors import EdgeSelError, SetupError

SAMPLE_S = 0.1


class SampledPower:
    """Joules by trapezoids over ``nvmlDeviceGetPowerUsage`` of all GPUs; a context manager."""

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml = pynvml
        self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._sample)
        self.samples: list[tuple[float, float]] = []

    def __enter__(self) -> SampledPower:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def joules(self) -> float:
        """Of the time between the first and the last sample."""
        return integrate(self.samples)

    def _sample(self) -> None:
        while not self._stop.is_set():
            watts = sum(self._nvml.nvmlDeviceGetPowerUsage(gpu) for gpu in self._gpus) / 1e3
            self.samples.append((time.monotonic(), watts))
            self._stop.wait(SAMPLE_S)


def integrate(samples: list[tuple[float, float]]) -> float:
    """Joules of (seconds, watts) by trapezoids; 0 for fewer than two."""
    return sum((b_s - a_s) * (a_w + b_w) / 2 for (a_s, a_w), (b_s, b_w) in pairwise(samples))


def zeus_window() -> tuple[Callable[[], None], Callable[[], float]] | None:
    """What begins and what ends a window of Zeus (joules of all GPUs); None where it is not installed."""
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return None
    monitor = ZeusMonitor()
    monitor.begin_window("first")  # it starts torch's part of the GPU, which takes seconds
    monitor.end_window("first")
    return lambda: monitor.begin_window("check"), lambda: float(monitor.end_window("check").total_energy)


def idle(until_s: float) -> None:
    """Do nothing."""
    time.sleep(max(0.0, until_s - time.monotonic()))


def load(until_s: float) -> None:
    """Multiply matrices in half precision."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    while time.monotonic() < until_s:
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()


def check(work: Callable[[float], None], seconds: float) -> dict[str, Any]:
    """One phase: joules by each way."""
    zeus = zeus_window()
    with EnergyMonitor("nvml") as monitor, SampledPower() as power:
        if zeus:
            zeus[0]()
        work(time.monotonic() + seconds)
        zeus_j = zeus[1]() if zeus else None
    figure = monitor.figure
    if figure.total_j is None:
        raise SetupError(f"no joules: {figure.why}", fix="see `edge-sel doctor`")
    found = {"method": figure.method, "seconds": figure.seconds, "power_w": figure.mean_power_w}
    found |= {"meter_j": figure.total_j, "sampled_j": power.joules, "samples": len(power.samples), "zeus_j": zeus_j}
    for way in ("sampled", "zeus"):
        other = found[f"{way}_j"]
        found[f"{way}_off_percent"] = None if other is None else 100 * (other / figure.total_j - 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    seconds = parser.parse_args().seconds
    try:
        with EnergyMonitor("nvml") as monitor:
            pass
        if monitor.figure.meter is None:
            raise SetupError(str(monitor.figure.why))
        result = {"idle": check(idle, seconds), "load": check(load, seconds)}
    except EdgeSelError as error:
        raise SystemExit(f"nvml_check: {error}") from None
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
