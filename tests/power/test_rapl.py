"""RAPL: packages and their memory, exact across wraps; what cannot be read or cannot be is an error with a fix."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_fakes import Clock, by_hand, kind, put, refused

from edge_sel import sysfs
from edge_sel.config.profiles import Profile
from edge_sel.power import rapl
from edge_sel.power.find import find_meter
from edge_sel.power.meter import MeterError
from edge_sel.power.rapl import RaplMeter

RANGE_UJ = 262_143_328_850


def zone(root: Path, number: str, name: str, energy: object = 0, reach: object = RANGE_UJ) -> Path:
    """As in sysfs: the zone lies under its parents in devices/, and class/powercap links to it."""
    prefix, *numbers = number.split(":")
    folder = root / "devices" / "virtual" / "powercap" / prefix
    for depth in range(len(numbers)):
        folder /= ":".join([prefix, *numbers[: depth + 1]])
    put(folder, name=name, enabled=0, energy_uj=energy, max_energy_range_uj=reach)
    link = root / "class" / "powercap" / number
    link.parent.mkdir(parents=True, exist_ok=True)
    if numbers and not link.is_symlink():
        link.symlink_to(os.path.relpath(folder, link.parent))
    return folder


def test_packages_and_their_dram_count_and_nothing_inside_or_around_them(tmp_path: Path) -> None:
    counted = [
        zone(tmp_path, "intel-rapl:0", "package-0", 100),
        zone(tmp_path, "intel-rapl:0:2", "dram", 200),
        zone(tmp_path, "intel-rapl:1", "package-1", 300),
        zone(tmp_path, "intel-rapl:1:0", "dram", 400),
        zone(tmp_path, "intel-rapl:3", "package-3", 500),
        zone(tmp_path, "intel-rapl:10", "package-10-die-1", 600),
    ]
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core"),
        zone(tmp_path, "intel-rapl:0:1", "uncore"),
        zone(tmp_path, "intel-rapl:2", "psys"),
        zone(tmp_path, "intel-rapl:2:0", "dram"),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0"),
    ]
    (tmp_path / "class" / "powercap" / "intel-rapl").mkdir()
    meter = RaplMeter(tmp_path)
    assert (meter.name, meter.source, meter.min_window_s) == ("rapl", "measured", 0.05)
    assert meter.read(1.0) == (1.0, 0.0, None, None)
    for place, folder in enumerate(counted):
        put(folder, energy_uj=100 * (place + 1) + 10**place)
    for folder in others:
        put(folder, energy_uj=999_999_999)
    assert meter.read(2.0) == (2.0, 0.111111, None, None)


def test_wraps_add_up_exactly_in_each_zone(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    dram = zone(tmp_path, "intel-rapl:0:0", "dram", 5, 1000)
    meter = RaplMeter(tmp_path)
    put(package, energy_uj=2_000_000)
    assert meter.read(1.0).energy_j == 3.0
    for second in range(2, 7):  # 500 forward in steps of 300: three wraps and a part
        put(dram, energy_uj=(5 + 300 * (second - 1)) % 1000)
        meter.read(float(second))
    assert meter.read(7.0).energy_j == 3.0015


def test_a_wrap_before_the_first_reading_and_after_a_long_pause_counts(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ // 2)
    clock = Clock()
    meter = RaplMeter(tmp_path, clock=clock)
    clock.sleep(3600.0)
    put(package, energy_uj=7)
    assert meter.read(3600.0).energy_j == (RANGE_UJ - RANGE_UJ // 2 + 7) / 1e6


@pytest.mark.parametrize(
    ("reach", "before", "after"), [(0, 50, 49), (None, 50, 49), ("?", 50, 49), (40, 50, 5), (40, 50, 45)]
)
def test_going_back_where_nothing_can_wrap_is_an_error(tmp_path: Path, reach: object, before: int, after: int) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", before, reach)
    meter = RaplMeter(tmp_path)
    put(package, energy_uj=after)
    error = refused(lambda: meter.read(1.0))
    assert f"package-0 went back from {before} to {after} uJ" in error.reason


def test_a_counter_that_began_anew_is_not_taken_for_a_wrap(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 90_000_000_000)
    clock = Clock()
    meter = RaplMeter(tmp_path, clock=clock)
    clock.sleep(3600.0)
    meter.read(3600.0)
    clock.sleep(0.1)
    put(package, energy_uj=12)  # a wrap would mean 172 kJ in a tenth of a second awake, however long it slept
    assert "no wrap" in refused(lambda: meter.read(8 * 3600.0)).reason


def test_no_tree_is_called_absent(tmp_path: Path) -> None:
    for make in (tmp_path, tmp_path / "class" / "powercap"):
        make.mkdir(parents=True, exist_ok=True)
        error = refused(lambda: RaplMeter(tmp_path))
        assert "absent" in error.reason
        assert "usual in virtual machines" in error.reason


def test_a_board_that_tells_only_psys_is_refused(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "psys")
    assert "no processor package" in refused(lambda: RaplMeter(tmp_path)).reason


def test_links_into_a_masked_tree_name_the_container(tmp_path: Path) -> None:
    tree = tmp_path / "class" / "powercap"
    tree.mkdir(parents=True)
    (tree / "intel-rapl:0").symlink_to("../../devices/virtual/powercap/intel-rapl/intel-rapl:0")
    error = refused(lambda: RaplMeter(tmp_path))
    assert "RAPL is hidden" in error.reason and "intel-rapl:0 leads nowhere" in error.reason
    assert "-v /sys:/host/sys:ro -e EDGE_SEL_SYSFS_ROOT=/host/sys" in str(error.fix)


def test_a_counter_file_that_is_missing_or_goes_is_an_error(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0")
    meter = RaplMeter(tmp_path)
    (package / "energy_uj").unlink()
    assert "energy_uj is missing" in refused(lambda: meter.read(1.0)).reason
    assert "energy_uj is missing" in refused(lambda: RaplMeter(tmp_path)).reason


@pytest.mark.parametrize("text", ["", "garbage", "-5", "1.5", "0x10", "nan", "1_0", "\xb2"])
def test_garbage_is_never_a_number(tmp_path: Path, text: str) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", text)
    assert "not microjoules" in refused(lambda: RaplMeter(tmp_path)).reason
    put(package, energy_uj=1)
    meter = RaplMeter(tmp_path)
    put(package, energy_uj=text)
    assert "not microjoules" in refused(lambda: meter.read(1.0)).reason


def deny(monkeypatch: pytest.MonkeyPatch, name: str, error: type[OSError] = PermissionError, code: int = 13) -> None:
    """Root reads whatever its mode."""
    genuine = sysfs.read_sysfs

    def read(path: Path) -> str:
        if path.name == name:
            raise error(code, "it is so", str(path))
        return genuine(path)

    monkeypatch.setattr(rapl, "read_sysfs", read)


def test_no_permission_says_how_to_allow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = RaplMeter(tmp_path)
    (package / "energy_uj").chmod(0)
    deny(monkeypatch, "energy_uj")
    for call in (lambda: RaplMeter(tmp_path), lambda: meter.read(1.0)):
        error = refused(call)
        assert "no permission" in error.reason
        assert "chmod a+r /sys%p/energy_uj" in str(error.fix)
        assert "udev" in str(error.fix)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads anything")
def test_no_permission_without_pretending(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj").chmod(0)
    assert "no permission" in refused(lambda: RaplMeter(tmp_path)).reason


def test_any_other_failure_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = RaplMeter(tmp_path)
    deny(monkeypatch, "energy_uj", OSError, 5)
    assert "cannot be read" in refused(lambda: meter.read(1.0)).reason


def test_memory_that_cannot_be_read_is_not_left_out_in_silence(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    (zone(tmp_path, "intel-rapl:0:0", "dram") / "energy_uj").unlink()
    assert "intel-rapl:0:0/energy_uj is missing" in refused(lambda: RaplMeter(tmp_path)).reason


def test_a_closed_meter_gives_nothing(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    meter = RaplMeter(tmp_path)
    meter.close()
    meter.close()
    with pytest.raises(MeterError, match="closed"):
        meter.read(1.0)


def test_it_is_found_and_recorded_like_any_meter(tmp_path: Path) -> None:
    package, clock = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 20_000), Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        now = int((package / "energy_uj").read_text())
        put(package, energy_uj=(now + round(15e6 * seconds)) % RANGE_UJ)

    kinds = {"rapl": kind(lambda profile: RaplMeter(tmp_path))}
    meter, probes = find_meter(Profile("p", 1.0, 2.0), "rapl", kinds=kinds, clock=clock, sleep=sleep)
    assert probes[0].power_w == pytest.approx(15.0)
    with by_hand(meter, clock) as recorder:
        window = recorder.start_window()
        sleep(2.0)
    figure = recorder.end_window(window)
    assert (figure.total_j, figure.source) == (pytest.approx(30.0), "measured")

    put(package, energy_uj=5)
    _, probes = find_meter(Profile("p", 1.0, 2.0), "rapl", kinds=kinds, clock=clock, sleep=clock.sleep)
    assert not probes[0].usable
    assert "stood still" in probes[0].why


@given(st.integers(1, 10**12), st.data())
def test_any_steps_with_wraps_sum_exactly(reach: int, data: st.DataObject) -> None:
    starts = data.draw(st.tuples(*[st.integers(0, reach - 1)] * 2))
    steps = data.draw(st.lists(st.tuples(*[st.integers(0, reach - 1)] * 2), max_size=12))
    with tempfile.TemporaryDirectory() as root:
        folders = [zone(Path(root), f"intel-rapl:{n}", f"package-{n}", e, reach) for n, e in enumerate(starts)]
        clock, places, total = Clock(), list(starts), 0
        meter = RaplMeter(Path(root), clock=clock)
        for second, moved in enumerate(steps):
            for n, step in enumerate(moved):
                places[n] = (places[n] + step) % reach
                put(folders[n], energy_uj=places[n])
            total += sum(moved)
            clock.sleep(1000.0)
            assert meter.read(float(second)).energy_j == total / 1e6
