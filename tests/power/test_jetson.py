"""The power rails of every Jetson, from trees laid out as its kernel does; expected watts are worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from jetson_boards import (
    AGX_XAVIER,
    BOARDS,
    NX,
    agx_orin,
    agx_xavier_4,
    agx_xavier_5,
    hwmon,
    iio,
    nano,
    orin_nano,
    orin_nx,
    thor,
)
from power_fakes import Clock, kind, refused, write

from edge_sel.config.profiles import Profile
from edge_sel.power.find import find_meter
from edge_sel.power.jetson import JetsonMeter
from edge_sel.power.meter import MeterError


def unusable(sysfs: Path, model: str | None = None) -> MeterError:
    return refused(lambda: JetsonMeter(sysfs, model=model))


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.__name__)
def test_the_power_of_a_board_is_that_of_its_module(board, tmp_path: Path) -> None:
    board(tmp_path)
    rails, watts = BOARDS[board]
    meter = JetsonMeter(tmp_path)
    assert meter.rails == rails
    reading = meter.read(12.0)
    assert (reading.time_s, reading.energy_j) == (12.0, None)
    assert reading.power_w == pytest.approx(watts)
    assert meter.min_window_s == 1.0
    meter.close()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.__name__)
def test_the_meter_of_a_board_is_found(board, tmp_path: Path) -> None:
    board(tmp_path)
    clock = Clock()
    kinds = {"jetson": kind(lambda profile: JetsonMeter(tmp_path))}
    meter, (probe,) = find_meter(Profile("board", 1.0, 10.0), "jetson", kinds=kinds, clock=clock, sleep=clock.sleep)
    assert meter is not None
    assert (meter.name, meter.source) == ("jetson", "measured")
    assert probe.power_w == pytest.approx(BOARDS[board][1])


def test_every_rail_is_told_without_those_not_connected_and_the_sum_of_shunts(tmp_path: Path) -> None:
    agx_orin(tmp_path)
    write(tmp_path / "bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4/in3_label", "")
    rails = dict(JetsonMeter(tmp_path).readings())
    expected = {"VDD_GPU_SOC": 3.8, "VDD_CPU_CV": 1.9, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 0.5}
    assert rails == pytest.approx(expected)


def test_the_driver_has_other_files_beside_the_chips(tmp_path: Path) -> None:
    """Chips are links; ``bind``, ``module`` and the like lie beside them."""
    orin_nano(tmp_path / "elsewhere")
    drivers = tmp_path / "sys/bus/i2c/drivers/ina3221"
    write(drivers / "bind", "")
    (drivers / "module").mkdir()
    (drivers / "1-0040").symlink_to(tmp_path / "elsewhere/bus/i2c/drivers/ina3221/1-0040")
    assert JetsonMeter(tmp_path / "sys").read(0.0).power_w == pytest.approx(4.96)


def test_a_rail_that_is_not_needed_may_fail(tmp_path: Path) -> None:
    folder = orin_nx(tmp_path)
    (folder / "curr3_input").unlink()
    meter = JetsonMeter(tmp_path)
    assert meter.read(0.0).power_w == pytest.approx(9.6)
    assert dict(meter.readings())["VDD_SOC"] is None


@pytest.mark.parametrize("ma, watts", [(0, 5.23), (-80, 5.23), (-100, 5.23), (10, 5.42)])
def test_an_idle_rail_may_be_a_little_negative(ma: int, watts: float, tmp_path: Path) -> None:
    """Without the GPU (1.9 W) the board draws 7.13 - 1.9 W."""
    agx_xavier_5(tmp_path)
    write(tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input", ma)
    assert JetsonMeter(tmp_path).read(0.0).power_w == pytest.approx(watts)


def test_negative_power_on_jetpack_4_has_a_limit_too(tmp_path: Path) -> None:
    agx_xavier_4(tmp_path)
    power = tmp_path / "bus/i2c/drivers/ina3221x/1-0040/iio:device0/in_power0_input"
    write(power, -400)
    assert JetsonMeter(tmp_path).read(0.0).power_w == pytest.approx(5.23)
    write(power, -501)
    assert "GPU reports a negative value" in str(unusable(tmp_path))


BROKEN: Mapping[str, tuple[str, str, str]] = {
    "negative current": ("curr2_input", "-101", "VDD_CPU_CV reports a negative value (curr2_input: -101)"),
    "negative voltage": ("in2_input", "-1", "VDD_CPU_CV reports a negative value (in2_input: -1)"),
    "garbage": ("curr2_input", "<busy>", "VDD_CPU_CV reports '<busy>'"),
    "empty": ("in2_input", "", "VDD_CPU_CV reports ''"),
    "more than any board draws": ("curr2_input", "32767", "VDD_CPU_CV reports 623 W"),  # 19 V x 32.767 A
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_rail_that_breaks_is_named(case: str, tmp_path: Path) -> None:
    agx_orin(tmp_path)
    meter = JetsonMeter(tmp_path)
    file, text, why = BROKEN[case]
    write(tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3" / file, text)
    assert why in str(refused(lambda: meter.read(1.0)))
    assert why in str(unusable(tmp_path))


def test_a_missing_current_file_is_named(tmp_path: Path) -> None:
    (orin_nano(tmp_path) / "curr1_input").unlink()
    error = str(unusable(tmp_path))
    assert "VDD_IN cannot be read: No such file" in error
    assert "curr1_input" in error


def test_a_rail_that_vanishes_is_named(tmp_path: Path) -> None:
    folder = nano(tmp_path)
    meter = JetsonMeter(tmp_path)
    (folder / "in_power0_input").unlink()
    with pytest.raises(MeterError, match="POM_5V_IN cannot be read"):
        meter.read(1.0)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), BlockingIOError(11, "Try again")])
def test_what_the_kernel_refuses_is_told(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orin_nano(tmp_path)
    meter = JetsonMeter(tmp_path)

    def refuse(path: Path) -> str:
        raise error

    monkeypatch.setattr("edge_sel.power.jetson.read_sysfs", refuse)
    with pytest.raises(MeterError, match=f"VDD_IN cannot be read: {error.strerror}") as caught:
        meter.read(1.0)
    assert ("as root" in str(caught.value)) == isinstance(error, PermissionError)


def test_zero_watts_are_an_error(tmp_path: Path) -> None:
    write(orin_nano(tmp_path) / "curr1_input", 0)
    assert "report 0 W: VDD_IN" in str(unusable(tmp_path))


def test_a_tree_without_rails_is_refused(tmp_path: Path) -> None:
    assert "no Jetson power rails" in str(unusable(tmp_path))
    assert "no Jetson power rails" in str(unusable(tmp_path / "missing"))


def test_unknown_rails_are_listed_and_never_added(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0040", 1, ("VDD_NEW", 5000, 100), ("VDD_OTHER", 5000, 100))
    error = unusable(tmp_path, "NVIDIA Jetson Next\0")
    assert "it has VDD_NEW, VDD_OTHER" in error.reason
    assert "(NVIDIA Jetson Next)" in error.reason
    assert "--meter psutil" in str(error)


def test_a_sum_of_rails_needs_both_chips(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0040", 1, *AGX_XAVIER[:3])
    assert "it has CPU, GPU, SOC" in unusable(tmp_path, "Jetson-AGX").reason


def test_two_total_rails_are_not_guessed_at(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0040", 1, *NX)
    hwmon(tmp_path, "1-0041", 2, *NX)
    assert "VDD_IN, VDD_IN" in unusable(tmp_path).reason


def test_thor_without_its_board_monitor_is_refused(tmp_path: Path) -> None:
    (thor(tmp_path) / "name").unlink()
    assert "VDD_CPU_SOC_MSS" in unusable(tmp_path).reason


def test_a_board_monitor_alone_must_be_that_of_a_jetson(tmp_path: Path) -> None:
    write(tmp_path / "class/hwmon/hwmon0/name", "ina238")
    write(tmp_path / "class/hwmon/hwmon0/power1_input", 30_000_000)
    assert "it has VIN" in unusable(tmp_path).reason
    assert "it has VIN" in unusable(tmp_path, "Some Board").reason
    assert JetsonMeter(tmp_path, model="NVIDIA Jetson AGX Thor").read(0.0).power_w == pytest.approx(30.0)
    write(tmp_path / "class/hwmon/hwmon1/name", "ina238")
    write(tmp_path / "class/hwmon/hwmon1/power1_input", 30_000_000)
    assert "it has VIN, VIN" in unusable(tmp_path, "NVIDIA Jetson AGX Thor").reason


def test_a_chip_that_averages_for_long_needs_long_windows(tmp_path: Path) -> None:
    write(orin_nano(tmp_path) / "update_interval", 3379)
    assert JetsonMeter(tmp_path).min_window_s == pytest.approx(33.79)


def test_rails_with_each_others_names_are_not_believed(tmp_path: Path) -> None:
    # A JetPack 4.6 log: POM_5V_IN 3.2 W and POM_5V_GPU 8.9 W.
    iio(tmp_path, "6-0040", 0, ("POM_5V_IN", 5000, 640), ("POM_5V_GPU", 5000, 1780), ("POM_5V_CPU", 5000, 200))
    with pytest.raises(MeterError, match="seem to be swapped: POM_5V_GPU reports 8"):
        JetsonMeter(tmp_path)
