"""NVML: the counter where it moves, sampled power elsewhere, and a reason with a fix where neither works."""

from __future__ import annotations

import sys

import pynvml
import pytest
from power_fakes import Clock, FakeGpu, FakeNvml, by_hand, kind, refused

from edge_sel.config.profiles import Profile
from edge_sel.power.find import find_meter
from edge_sel.power.meter import MeterError
from edge_sel.power.nvml import NvmlMeter


def open_meter(*gpus: FakeGpu) -> NvmlMeter:
    nvml = FakeNvml(*gpus)
    return NvmlMeter(nvml=nvml, sleep=nvml.sleep)


def unusable(*gpus: FakeGpu, init: Exception | None = None) -> MeterError:
    nvml = FakeNvml(*gpus, init=init)
    error = refused(lambda: NvmlMeter(nvml=nvml, sleep=nvml.sleep))
    assert nvml.stopped == nvml.started
    return error


def test_the_fake_has_nothing_the_real_module_lacks() -> None:
    names = [name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert len(names) == 13
    assert all(hasattr(pynvml, name) for name in names)


def test_the_counter_is_preferred_and_read_in_joules() -> None:
    gpu = FakeGpu(energy_mj=7_000_000, draws_mw=50_000)
    meter = open_meter(gpu)
    before = meter.read(1.0)
    gpu.energy_mj += 2500
    after = meter.read(2.0)
    assert (after.time_s, after.power_w) == (2.0, None)
    assert after.energy_j - before.energy_j == pytest.approx(2.5)
    assert meter.min_window_s == 1.0


def test_a_counter_that_stands_still_gives_way_to_sampled_power() -> None:
    meter = open_meter(FakeGpu(stuck=True, power_mw=42_500))
    assert meter.read(3.0) == (3.0, None, 42.5, None)
    assert meter.min_window_s == 2.0


@pytest.mark.parametrize("error", [pynvml.NVMLError_NotSupported(), pynvml.NVMLError_FunctionNotFound()])
def test_a_board_without_a_counter_gives_sampled_power(error: Exception) -> None:
    assert open_meter(FakeGpu(energy_mj=error, power_mw=9_000)).read(0.0).power_w == 9.0


def test_several_boards_add_up_and_the_hottest_counts() -> None:
    gpus = FakeGpu(energy_mj=1000), FakeGpu(energy_mj=3000, temperature=71)
    meter = open_meter(*gpus)
    assert meter.read(0.0).energy_j == pytest.approx(sum(gpu.energy_mj for gpu in gpus) / 1000)
    assert meter.temperature_c() == 71


def test_one_board_without_a_counter_makes_all_sampled() -> None:
    meter = open_meter(FakeGpu(power_mw=10_000), FakeGpu(stuck=True, power_mw=20_000))
    assert meter.read(0.0).power_w == 30.0


def test_a_temperature_that_cannot_be_read_is_none() -> None:
    meter = open_meter(FakeGpu(temperature=pynvml.NVMLError_NotSupported()))
    assert meter.temperature_c() is None


@pytest.mark.parametrize(
    ("error", "why", "fix"),
    [
        (pynvml.NVMLError_LibraryNotFound(), "driver is not installed", "--gpus all"),
        (pynvml.NVMLError_DriverNotLoaded(), "driver is not loaded", "modprobe nvidia"),
        (pynvml.NVMLError_LibRmVersionMismatch(), "differ in version", "reboot"),
        (pynvml.NVMLError_NoPermission(), "no permission", "join the group"),
        (pynvml.NVMLError_Unknown(), "Unknown Error", "nvidia-smi"),
    ],
)
def test_nvml_that_does_not_start_is_told_with_a_fix(error: Exception, why: str, fix: str) -> None:
    found = unusable(init=error)
    assert why in found.reason
    assert fix in str(found.fix)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (pynvml.NVMLError_NotSupported(), "GPU 1: it reports no power, as on a Jetson"),
        (pynvml.NVMLError_NoPermission(), "GPU 1: no permission to ask the GPU"),
        (pynvml.NVMLError_GpuIsLost(), "GPU 1: the GPU is lost"),
    ],
)
def test_one_unreadable_board_is_told_not_left_out(error: Exception, why: str) -> None:
    """A sum that quietly means some of the boards would be a wrong number."""
    assert why in unusable(FakeGpu(), FakeGpu(energy_mj=error, power_mw=error)).reason


def test_a_divided_board_is_refused() -> None:
    """Its counter works, but it counts for everybody on the board."""
    assert "MIG" in unusable(FakeGpu(mig=1)).reason


def test_a_board_that_could_be_divided_but_is_not_is_read() -> None:
    gpu = FakeGpu(mig=0)
    assert open_meter(gpu).read(0.0).energy_j == pytest.approx(gpu.energy_mj / 1000)


def test_a_driver_without_boards_is_refused() -> None:
    assert "lists no GPU" in unusable().reason


def test_a_closed_meter_gives_nothing() -> None:
    nvml = FakeNvml(FakeGpu())
    meter = NvmlMeter(nvml=nvml, sleep=nvml.sleep)
    meter.close()
    meter.close()
    assert (nvml.started, nvml.stopped) == (1, 1)
    assert meter.temperature_c() is None
    with pytest.raises(MeterError, match="closed"):
        meter.read(0.0)


def test_a_missing_module_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MeterError, match="pip install nvidia-ml-py"):
        NvmlMeter()


def test_a_board_lost_in_the_middle_of_a_run_makes_the_rest_unavailable() -> None:
    clock, events = Clock(), []
    gpu = FakeGpu()
    recorder = by_hand(open_meter(gpu), clock, on_event=events.append)
    run, epoch = recorder.start_window("run"), recorder.start_window("epoch 1")
    gpu.energy_mj += 100_000
    clock.sleep(2.0)
    first = recorder.lap(epoch, "epoch 2")
    gpu.energy_mj += 30_000
    clock.sleep(1.0)
    recorder.sample_once()
    gpu.energy_mj = pynvml.NVMLError_GpuIsLost()
    clock.sleep(1.0)
    second, third, whole = recorder.lap(epoch, "epoch 3"), recorder.end_window(epoch), recorder.end_window(run)
    assert (first.total_j, first.source) == (pytest.approx(100.0), "measured")
    assert (second.total_j, second.net_j, second.source) == (None, None, "unavailable")
    assert second.partial_j == pytest.approx(30.0)
    assert (third.total_j, third.partial_j) == (None, None)
    assert (whole.total_j, whole.partial_j) == (None, pytest.approx(130.0))
    assert whole.why == "GPU 0: the GPU is lost"
    assert [event["event"] for event in events] == ["meter_lost"]
    assert events[0]["fix"]


# Throttling

IDLE, SET, SYNC, DISPLAY = (
    pynvml.nvmlClocksEventReasonGpuIdle,
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
    pynvml.nvmlClocksEventReasonSyncBoost,
    pynvml.nvmlClocksEventReasonDisplayClockSetting,
)
CAP, SLOW, SW_HEAT, HW_HEAT, BRAKE = (
    pynvml.nvmlClocksEventReasonSwPowerCap,
    pynvml.nvmlClocksEventReasonHwSlowdown,
    pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0, []),
        (IDLE | SET | SYNC | DISPLAY, []),
        (CAP, ["power cap"]),
        (SW_HEAT | CAP, ["power cap", "heat, by the driver"]),
        (HW_HEAT | SLOW, ["heat, by the hardware"]),
        (BRAKE | SLOW | IDLE, ["power brake"]),
        (SLOW, ["slowdown by the hardware"]),
    ],
)
def test_why_the_clocks_are_held_down(bits: int, expected: list[str]) -> None:
    assert open_meter(FakeGpu(reasons=bits)).throttle_reasons() == expected


@pytest.mark.parametrize("error", [pynvml.NVMLError_NotSupported(), pynvml.NVMLError_GpuIsLost()])
def test_a_board_that_does_not_tell_why_gives_nothing(error: Exception) -> None:
    assert open_meter(FakeGpu(reasons=error, old_reasons=error)).throttle_reasons() == []


def test_an_old_driver_or_module_knows_the_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = open_meter(FakeGpu(reasons=pynvml.NVMLError_FunctionNotFound(), old_reasons=CAP))
    assert meter.throttle_reasons() == ["power cap"]
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetCurrentClocksEventReasons")
    assert meter.throttle_reasons() == ["power cap"]
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetCurrentClocksThrottleReasons")
    assert meter.throttle_reasons() == []


def test_of_several_boards_the_throttled_one_is_named() -> None:
    meter = open_meter(FakeGpu(reasons=CAP), FakeGpu(), FakeGpu(reasons=SW_HEAT))
    assert meter.throttle_reasons() == ["GPU 0: power cap", "GPU 2: heat, by the driver"]
    meter.close()
    assert meter.throttle_reasons() == []


# In use


def test_it_is_found_like_any_meter() -> None:
    nvml = FakeNvml(FakeGpu())
    kinds = {"nvml": kind(lambda profile: NvmlMeter(nvml=nvml, sleep=nvml.sleep))}
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        nvml.sleep(seconds)

    meter, probes = find_meter(Profile("p", 1.0, 2.0), "nvml", kinds=kinds, clock=clock, sleep=sleep)
    assert isinstance(meter, NvmlMeter)
    assert probes[0].why == "measured, by an energy counter"
    assert probes[0].power_w == pytest.approx(50.0)
