"""NVIDIA GPUs through NVML: the energy counter where it moves, else sampled power.

The counter (millijoules since the driver was loaded; Volta and later) is refreshed every 10 to 100 ms.
Sampled power (milliwatts) is an average over up to a second; on A100 and H100 it covers about a quarter of
the time (arXiv 2312.02741). The figures are those of whole boards, whoever uses them. On a Jetson NVML starts,
but refuses every power query.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from edge_sel.config.profiles import Profile
from edge_sel.power.meter import MODELLED, EnergySource, MeterError, Reading, Subject

_IN_CONTAINER = "in a container, start it with --gpus all"
_REMEDIES = {
    "NVMLError_LibraryNotFound": (
        "the NVIDIA driver is not installed",
        f"install it; {_IN_CONTAINER}; without an NVIDIA GPU there is nothing to do",
    ),
    "NVMLError_DriverNotLoaded": ("the NVIDIA driver is not loaded", f"modprobe nvidia; {_IN_CONTAINER}"),
    "NVMLError_LibRmVersionMismatch": ("the NVIDIA driver and its library differ in version", "reboot"),
    "NVMLError_NoPermission": (
        "no permission to ask the GPU",
        f"join the group that owns /dev/nvidia*; {_IN_CONTAINER}",
    ),
    "NVMLError_NotSupported": ("it reports no power, as on a Jetson and some boards", MODELLED),
    "NVMLError_FunctionNotFound": ("the driver is too old to report power", "update the NVIDIA driver"),
    "NVMLError_GpuIsLost": ("the GPU is lost", "see dmesg for an Xid error; reset the GPU or reboot"),
}
_REASONS = {0x04: "power cap", 0x20: "heat, by the driver", 0x40: "heat, by the hardware", 0x80: "power brake"}
_HW_SLOWDOWN = 0x08  # the hardware halved the clocks or more; 0x40 or 0x80 tell why
COUNTER_WAIT_S = 0.25
_STEP_S = 0.02


class NvmlMeter:
    """All GPUs; their energies add up. Their numbers are NVML's: the order of ``nvidia-smi``, which may not be CUDA's.

    Args:
        nvml: the ``pynvml`` module, or something like it.
        sleep: waits while the counter is watched.

    """

    name = "nvml"
    of: ClassVar[Subject] = "gpu"
    source: ClassVar[EnergySource] = "measured"

    def __init__(
        self,
        *,
        nvml: Any = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._nvml = _pynvml() if nvml is None else nvml
        self._open = False
        self._handles: dict[int, Any] = {}
        try:
            self._ask(self._nvml.nvmlInit)
            self._open = True
            for number in range(self._ask(self._nvml.nvmlDeviceGetCount)):
                self._handles[number] = self._ask(self._nvml.nvmlDeviceGetHandleByIndex, number, gpu=number)
                self._refuse_mig(number)
            if not self._handles:
                raise MeterError("the NVIDIA driver lists no GPU", "see nvidia-smi")
            self.counts = self._counters_move(sleep)
            self.min_window_s = 1.0 if self.counts else 2.0
            self.read(0.0)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, profile: Profile) -> NvmlMeter:
        """All GPUs."""
        return cls()

    def read(self, now_s: float) -> Reading:
        """The sum over the GPUs, of joules or of watts."""
        if not self._open:
            raise MeterError("the NVML meter is closed")
        if self.counts:
            return Reading(now_s, sum(self._each("nvmlDeviceGetTotalEnergyConsumption")) / 1e3, None)
        return Reading(now_s, None, sum(self._each("nvmlDeviceGetPowerUsage")) / 1e3)

    def temperature_c(self) -> float | None:
        """The hottest GPU's temperature."""
        found: list[float] = []
        for handle in self._handles.values() if self._open else ():
            try:
                sensor = self._nvml.NVML_TEMPERATURE_GPU
                found.append(float(self._nvml.nvmlDeviceGetTemperature(handle, sensor)))
            except self._nvml.NVMLError:
                continue
        return max(found, default=None)

    def throttle_reasons(self) -> list[str]:
        """Why the clocks are held down now: power cap, heat, power brake, slowdown.

        Boards that do not tell give nothing, nor do clocks that are low because the GPU is idle or was set so.
        """
        found = []
        for number, handle in self._handles.items() if self._open else ():
            bits = self._clock_reasons(handle)
            reasons = [reason for bit, reason in _REASONS.items() if bits & bit]
            if bits & _HW_SLOWDOWN and not bits & 0xC0:
                reasons.append("slowdown by the hardware")
            found += [reason if len(self._handles) == 1 else f"GPU {number}: {reason}" for reason in reasons]
        return found

    def close(self) -> None:
        """Let NVML go; reading is over."""
        if self._open:
            self._open = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _counters_move(self, sleep: Callable[[float], None]) -> bool:
        """Whether every GPU has a counter and it advances within ``COUNTER_WAIT_S``."""
        try:
            first = self._each("nvmlDeviceGetTotalEnergyConsumption")
            for _ in range(round(COUNTER_WAIT_S / _STEP_S)):
                sleep(_STEP_S)
                now = self._each("nvmlDeviceGetTotalEnergyConsumption")
                if all(after > before for before, after in zip(first, now, strict=True)):
                    return True
        except MeterError:  # then its power must be readable, and read() will tell
            pass
        return False

    def _clock_reasons(self, handle: Any) -> int:
        """A set of bits. Older drivers and modules know only the second name."""
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            with suppress(AttributeError, self._nvml.NVMLError):
                return int(getattr(self._nvml, name)(handle))
        return 0

    def _refuse_mig(self, number: int) -> None:
        try:
            mode, _ = self._nvml.nvmlDeviceGetMigMode(self._handles[number])
        except self._nvml.NVMLError:
            return  # a board that cannot be divided
        if mode == self._nvml.NVML_DEVICE_MIG_ENABLE:
            raise MeterError(
                f"GPU {number} is partitioned (MIG): NVML reports the power of the whole board only", MODELLED
            )

    def _each(self, call: str) -> list[int]:
        return [self._ask(getattr(self._nvml, call), h, gpu=n) for n, h in self._handles.items()]

    def _ask(self, call: Callable[..., Any], *args: Any, gpu: int | None = None) -> Any:
        try:
            return call(*args)
        except self._nvml.NVMLError as error:
            why, fix = _REMEDIES.get(type(error).__name__, (str(error), "see nvidia-smi"))
            raise MeterError(why if gpu is None else f"GPU {gpu}: {why}", fix) from error


def _pynvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        raise MeterError("the pynvml module is missing", "pip install nvidia-ml-py") from None
