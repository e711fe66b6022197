"""Finding a meter: values are looked at, reasons are told, nothing is replaced in silence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from power_fakes import Clock, FakeMeter, kind

from edge_sel.config.profiles import METERS, Profile
from edge_sel.errors import UsageError
from edge_sel.power.find import METER_KINDS, find_meter
from edge_sel.power.meter import Meter, MeterError, MeterKind

PROFILE = Profile("p", idle_w=2.0, max_w=10.0, meters=("nvml", "psutil"))


def kinds(clock: Clock, **made: Meter | Exception) -> dict[str, MeterKind]:
    def opener(what: Meter | Exception) -> Callable[[Profile], Meter]:
        def open_it(profile: Profile) -> Meter:
            if isinstance(what, Exception):
                raise what
            return what

        return open_it

    return {name: kind(opener(what), of="gpu" if name == "nvml" else "device") for name, what in made.items()}


def test_every_meter_a_profile_may_name_can_be_opened() -> None:
    assert tuple(METER_KINDS) == METERS


def test_the_first_that_works_is_taken_and_the_others_are_closed() -> None:
    clock = Clock()
    first, second = FakeMeter(clock, 12.0), FakeMeter(clock, source="modelled")
    meter, probes = find_meter(PROFILE, kinds=kinds(clock, nvml=first, psutil=second), clock=clock, sleep=clock.sleep)
    assert meter is first
    assert (first.closed, second.closed) == (0, 1)
    assert [(probe.name, probe.usable) for probe in probes] == [("nvml", True), ("psutil", True)]
    assert probes[0].power_w == pytest.approx(12.0)


def test_the_reason_of_a_failure_is_told_and_the_next_is_tried() -> None:
    clock = Clock()
    second = FakeMeter(clock, source="modelled")
    made = kinds(clock, nvml=MeterError("not here", "go there"), psutil=second)
    meter, probes = find_meter(PROFILE, kinds=made, clock=clock, sleep=clock.sleep)
    assert meter is second
    assert (probes[0].usable, probes[0].why, probes[0].fix) == (False, "not here", "go there")
    assert probes[0].power_w is None
    assert probes[1].why.startswith("modelled")


def test_a_meter_asked_for_is_not_replaced() -> None:
    clock = Clock()
    made = kinds(clock, nvml=MeterError("not here"), psutil=FakeMeter(clock))
    meter, probes = find_meter(PROFILE, "nvml", kinds=made, clock=clock, sleep=clock.sleep)
    assert meter is None
    assert [probe.name for probe in probes] == ["nvml"]


def test_for_work_on_the_processor_no_meter_of_gpus_is_opened() -> None:
    clock = Clock()
    made = kinds(clock, nvml=MeterError("opened"), mine=FakeMeter(clock), psutil=FakeMeter(clock, source="modelled"))
    profile = replace(PROFILE, meters=("nvml", "mine", "psutil"))
    meter, probes = find_meter(profile, kinds=made, clock=clock, sleep=clock.sleep, on_processor=True)
    assert meter is not None
    assert [probe.name for probe in probes] == ["mine", "psutil"]


def test_starting_is_not_enough_values_must_come() -> None:
    clock = Clock()
    mute = FakeMeter(clock)
    mute.error = MeterError("not supported", "another board")
    broken = FakeMeter(clock)
    broken.error = OSError("strange")
    made = kinds(clock, nvml=mute, psutil=broken)
    meter, probes = find_meter(PROFILE, kinds=made, clock=clock, sleep=clock.sleep)
    assert meter is None
    assert [probe.why for probe in probes] == ["not supported", "OSError: strange"]
    assert (mute.closed, broken.closed) == (1, 1)


@pytest.mark.parametrize(
    ("power_w", "counter", "why"),
    [
        (0.0, True, "stood still"),
        (0.0, False, "0 W"),
        (float("nan"), False, "no usable value"),
        (-3.0, False, "negative"),
    ],
)
def test_a_meter_whose_values_no_device_has_is_not_taken(power_w: float, counter: bool, why: str) -> None:
    clock = Clock()
    made = kinds(clock, nvml=FakeMeter(clock, power_w, counter=counter))
    meter, probes = find_meter(PROFILE, "nvml", kinds=made, clock=clock, sleep=clock.sleep)
    assert meter is None
    assert why in probes[0].why


def test_a_slow_counter_is_timed_from_move_to_move() -> None:
    """NVML's moves every 100 ms: between two looks it seems to draw nothing, or five times too much."""
    clock = Clock(0.05)

    class Slow(FakeMeter):
        def read(self, now_s: float):  # type: ignore[no-untyped-def]
            return super().read(int(now_s * 10 + 1e-6) / 10)._replace(time_s=now_s)

    made = kinds(clock, nvml=Slow(clock, 30.0))
    _, probes = find_meter(PROFILE, "nvml", kinds=made, clock=clock, sleep=clock.sleep)
    assert probes[0].power_w == pytest.approx(30.0)


def test_a_meter_of_sampled_power_is_called_so() -> None:
    clock = Clock()
    made = kinds(clock, nvml=FakeMeter(clock, 8.0, counter=False))
    _, probes = find_meter(PROFILE, "nvml", kinds=made, clock=clock, sleep=clock.sleep)
    assert (probes[0].power_w, probes[0].why) == (8.0, "measured, by sampled power")


def test_an_idle_model_may_stand_still() -> None:
    clock = Clock()
    made = kinds(clock, psutil=FakeMeter(clock, 0.0, source="modelled"))
    meter, probes = find_meter(PROFILE, "psutil", kinds=made, clock=clock, sleep=clock.sleep)
    assert meter is not None
    assert probes[0].power_w == 0.0


def test_an_unknown_meter_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean nvml"):
        find_meter(PROFILE, "nvlm")


def test_this_machine_has_at_least_the_model() -> None:
    meter, probes = find_meter(PROFILE)
    assert meter is not None
    meter.close()
    assert [probe.name for probe in probes] == ["nvml", "psutil"]
    assert probes[1].usable
    assert all(probe.usable or probe.fix for probe in probes)


def test_importing_power_imports_no_driver() -> None:
    code = "import sys, edge_sel.power, edge_sel.config.settings; print({'psutil', 'pynvml', 'numpy'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
