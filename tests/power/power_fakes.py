"""Stand-ins for time and for hardware. The NVML one has the real module's names, constants and error classes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from edge_sel.config.profiles import Profile
from edge_sel.power.meter import EnergySource, MeterError, MeterKind, Reading, Subject
from edge_sel.power.recorder import EnergyRecorder

SOON_S = 30.0


class Clock:
    """Time passes when told to."""

    def __init__(self, now_s: float = 100.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class FakeMeter:
    """Draws ``power_w`` by the clock; tells it as a counter or as power."""

    name = "fake"
    min_window_s = 0.5

    def __init__(
        self,
        clock: Clock,
        power_w: float | Callable[[float], float] = 10.0,
        *,
        counter: bool = True,
        source: EnergySource = "measured",
    ) -> None:
        self.clock, self.power_w, self.counter, self.source = clock, power_w, counter, source
        self.energy_j, self.last_s = 5000.0, clock()
        self.error: Exception | None = None
        self.reads = self.closed = 0

    def read(self, now_s: float) -> Reading:
        self.reads += 1
        if self.error is not None:
            raise self.error
        power_w = self.power_w(now_s) if callable(self.power_w) else self.power_w
        self.energy_j += power_w * (now_s - self.last_s)
        self.last_s = now_s
        return Reading(now_s, self.energy_j, None) if self.counter else Reading(now_s, None, power_w)

    def close(self) -> None:
        self.closed += 1

    def unplug(self) -> None:
        self.error = MeterError("it is gone", "plug it in")


def kind(open_it: Callable[[Profile], Any], of: Subject = "device", source: EnergySource = "measured") -> MeterKind:
    """What stands in for a class of meters."""
    return SimpleNamespace(open=open_it, of=of, source=source)


def by_hand(meter: Any, clock: Clock, **given: Any) -> EnergyRecorder:
    """A recorder without a thread and without this machine's thermometers."""
    return EnergyRecorder(meter, clock, background=False, **{"temperature": lambda: None, **given})


def refused(call: Callable[[], Any]) -> MeterError:
    """The error of a meter that cannot be opened or read: one line, and what to do."""
    with pytest.raises(MeterError) as error:
        call()
    assert error.value.fix
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)
    return error.value


def write(path: Path, text: object = 1) -> Path:
    """A file as sysfs has it, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")
    return path


def put(folder: Path, **files: object) -> Path:
    """Files below a folder, by their paths; None takes one away."""
    for name, text in files.items():
        if text is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write(folder / name, text)
    return folder


@contextmanager
def hanging(temp: Path) -> Iterator[None]:
    """The file hangs whoever opens it, until the block ends."""
    temp.unlink()
    os.mkfifo(temp)
    before = set(threading.enumerate())
    try:
        yield
    finally:
        stuck = [thread for thread in threading.enumerate() if thread not in before]
        assert all(thread.daemon for thread in stuck)
        for thread in stuck:
            release(temp, thread)
        temp.unlink()


def release(temp: Path, thread: threading.Thread) -> None:
    """Write into the pipe until the thread that reads it has gone."""
    pipe = os.open(temp, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(pipe, b"44000\n")
        thread.join(SOON_S)
    finally:
        os.close(pipe)
    assert not thread.is_alive()


class FakeGpu(SimpleNamespace):
    """One board: an exception in place of a value is raised."""

    energy_mj: Any = 7_000_000
    power_mw: Any = 50_000
    temperature: Any = 60
    mig: Any = pynvml.NVMLError_NotSupported()
    reasons: Any = 0
    old_reasons: Any = pynvml.NVMLError_FunctionNotFound()


class FakeNvml:
    """What ``NvmlMeter`` calls of pynvml; a test checks that every name exists there."""

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_DEVICE_MIG_ENABLE = pynvml.NVML_DEVICE_MIG_ENABLE

    def __init__(self, *gpus: FakeGpu, init: Exception | None = None) -> None:
        self.gpus, self.init = list(gpus), init
        self.started = self.stopped = 0

    def sleep(self, seconds: float) -> None:
        """As time passes every counter that is a number goes up by what its board draws."""
        for gpu in self.gpus:
            if isinstance(gpu.energy_mj, int) and not getattr(gpu, "stuck", False):
                gpu.energy_mj += round(getattr(gpu, "draws_mw", 50_000) * seconds)

    def nvmlInit(self) -> None:
        if self.init is not None:
            raise self.init
        self.started += 1

    def nvmlShutdown(self) -> None:
        self.stopped += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        if index >= len(self.gpus):
            raise pynvml.NVMLError_InvalidArgument
        return self.gpus[index]

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:
        return [answered(handle.mig), 0]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu) -> int:
        return answered(handle.energy_mj)

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        return answered(handle.power_mw)

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return answered(handle.temperature)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: FakeGpu) -> int:
        return answered(handle.reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: FakeGpu) -> int:
        return answered(handle.old_reasons)


def answered(value: Any) -> int:
    if isinstance(value, Exception):
        raise value
    return int(value)
