"""The power rails of every Jetson, from trees laid out as its kernel does; expected watts are worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from power_fakes import Clock

from edge_sel.config.profiles import Profile
from edge_sel.power import MeterError, find_meter
from edge_sel.power.jetson import JetsonMeter

Channel = tuple[str, int, int]  # label, mV, mA


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def iio(sysfs: Path, chip: str, number: int, *channels: Channel, power: bool = True) -> Path:
    """JetPack 4; channels count from 0."""
    folder = sysfs / f"bus/i2c/drivers/ina3221x/{chip}/iio:device{number}"
    for n, (label, mv, ma) in enumerate(channels):
        put(folder / f"rail_name_{n}", label)
        put(folder / f"in_voltage{n}_input", mv)
        put(folder / f"in_current{n}_input", ma)
        if power:
            put(folder / f"in_power{n}_input", mv * ma // 1000)
    return folder


def hwmon(sysfs: Path, chip: str, number: int, *channels: Channel) -> Path:
    """JetPack 5 and 6; channels count from 1, shunt voltages follow, 7 is their sum."""
    folder = sysfs / f"bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{number}"
    put(folder / "name", "ina3221")
    for n, (label, mv, ma) in enumerate(channels, start=1):
        put(folder / f"in{n}_label", label)
        put(folder / f"in{n}_input", mv)
        put(folder / f"curr{n}_input", ma)
        put(folder / f"in{n + 3}_input", ma * 5)
    put(folder / "in7_label", "sum of shunt voltages")
    put(folder / "in7_input", 9999)
    put(folder / "curr7_input", 9999)
    return folder


def nano(sysfs: Path) -> Path:
    rails: list[Channel] = [("POM_5V_IN", 5000, 700), ("POM_5V_GPU", 5000, 100), ("POM_5V_CPU", 5000, 200)]
    return iio(sysfs, "6-0040", 0, *rails)


def nano_without_power_files(sysfs: Path) -> Path:
    rails: list[Channel] = [("POM_5V_IN", 5000, 700), ("POM_5V_GPU", 5000, 100), ("POM_5V_CPU", 5000, 200)]
    return iio(sysfs, "6-0040", 0, *rails, power=False)


NX: list[Channel] = [("VDD_IN", 5000, 1500), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300)]
AGX_XAVIER: list[Channel] = [
    ("GPU", 19000, 100),  # 1.9 W
    ("CPU", 19000, 50),  # 0.95 W
    ("SOC", 19000, 100),  # 1.9 W
    ("CV", 19000, 0),
    ("VDDRQ", 19000, 20),  # 0.38 W
    ("SYS5V", 5000, 400),  # 2 W
]  # 7.13 W


def xavier_nx_4(sysfs: Path) -> Path:
    return iio(sysfs, "7-0040", 0, *NX)


def xavier_nx_5(sysfs: Path) -> Path:
    return hwmon(sysfs, "7-0040", 4, *NX)


def agx_xavier_4(sysfs: Path) -> Path:
    iio(sysfs, "1-0040", 0, *AGX_XAVIER[:3])
    return iio(sysfs, "1-0041", 1, *AGX_XAVIER[3:])


def agx_xavier_5(sysfs: Path) -> Path:
    hwmon(sysfs, "1-0040", 3, *AGX_XAVIER[:3])
    return hwmon(sysfs, "1-0041", 4, *AGX_XAVIER[3:])


def orin_nano(sysfs: Path) -> Path:
    return hwmon(sysfs, "1-0040", 1, ("VDD_IN", 4960, 1000), ("VDD_CPU_GPU_CV", 4960, 200), ("VDD_SOC", 4960, 300))


def orin_nx(sysfs: Path) -> Path:
    return hwmon(sysfs, "1-0040", 3, ("VDD_IN", 12000, 800), ("VDD_CPU_GPU_CV", 4960, 200), ("VDD_SOC", 4960, 300))


def agx_orin(sysfs: Path) -> Path:
    rails: list[Channel] = [("VDD_GPU_SOC", 19000, 200), ("VDD_CPU_CV", 19000, 100), ("VIN_SYS_5V0", 5000, 800)]
    hwmon(sysfs, "1-0040", 3, *rails)
    return hwmon(sysfs, "1-0041", 4, ("NC", 19000, 5000), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 19000, 5000))


def thor(sysfs: Path) -> Path:
    rails: list[Channel] = [("VDD_GPU", 4900, -80), ("VDD_CPU_SOC_MSS", 5000, 800), ("VIN_SYS_5V0", 5000, 1300)]
    hwmon(sysfs, "2-0040", 3, *rails)
    folder = sysfs / "class/hwmon/hwmon5"
    put(folder / "name", "ina238")
    put(folder / "power1_input", 23_456_000)
    for number in (6, 7):
        put(sysfs / f"class/hwmon/hwmon{number}/name", f"ucsi_source_psy_2_000810{number}")
        put(sysfs / f"class/hwmon/hwmon{number}/power1_input", 60_000_000)
    return folder


BOARDS = {
    nano: (("POM_5V_IN",), 3.5),  # 5 V x 0.7 A
    nano_without_power_files: (("POM_5V_IN",), 3.5),
    xavier_nx_4: (("VDD_IN",), 7.5),  # 5 V x 1.5 A
    xavier_nx_5: (("VDD_IN",), 7.5),
    agx_xavier_4: (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), 7.13),
    agx_xavier_5: (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), 7.13),
    orin_nano: (("VDD_IN",), 4.96),  # 4.96 V x 1 A
    orin_nx: (("VDD_IN",), 9.6),  # 12 V x 0.8 A
    agx_orin: (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"), 10.2),  # 3.8 + 1.9 + 4 + 0.5
    thor: (("VIN",), 23.456),
}


def refused(sysfs: Path, model: str | None = None) -> MeterError:
    with pytest.raises(MeterError) as error:
        JetsonMeter(sysfs, model=model)
    assert error.value.fix
    return error.value


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
def test_the_meter_passes_the_search(board, tmp_path: Path) -> None:
    board(tmp_path)
    clock = Clock()
    openers = {"jetson": lambda profile: JetsonMeter(tmp_path)}
    meter, (probe,) = find_meter(Profile("board", 1.0, 10.0), "jetson", openers=openers, clock=clock, sleep=clock.sleep)
    assert meter is not None
    assert (meter.name, meter.source) == ("jetson", "measured")
    assert probe.power_w == pytest.approx(BOARDS[board][1])


def test_every_rail_is_told_without_those_not_connected_and_the_sum_of_shunts(tmp_path: Path) -> None:
    agx_orin(tmp_path)
    put(tmp_path / "bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4/in3_label", "")
    told = dict(JetsonMeter(tmp_path).readings())
    expected = {"VDD_GPU_SOC": 3.8, "VDD_CPU_CV": 1.9, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 0.5}
    assert told == pytest.approx(expected)


def test_the_driver_has_other_files_beside_the_chips(tmp_path: Path) -> None:
    """Chips are links; ``bind``, ``module`` and the like lie beside them."""
    orin_nano(tmp_path / "elsewhere")
    drivers = tmp_path / "sys/bus/i2c/drivers/ina3221"
    put(drivers / "bind", "")
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
    put(tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input", ma)
    assert JetsonMeter(tmp_path).read(0.0).power_w == pytest.approx(watts)


def test_negative_power_on_jetpack_4_has_a_limit_too(tmp_path: Path) -> None:
    agx_xavier_4(tmp_path)
    power = tmp_path / "bus/i2c/drivers/ina3221x/1-0040/iio:device0/in_power0_input"
    put(power, -400)
    assert JetsonMeter(tmp_path).read(0.0).power_w == pytest.approx(5.23)
    put(power, -501)
    assert "GPU tells a negative value" in str(refused(tmp_path))


BROKEN: Mapping[str, tuple[str, str, str]] = {
    "negative current": ("curr2_input", "-101", "VDD_CPU_CV tells a negative value (curr2_input: -101)"),
    "negative voltage": ("in2_input", "-1", "VDD_CPU_CV tells a negative value (in2_input: -1)"),
    "garbage": ("curr2_input", "<busy>", "VDD_CPU_CV tells '<busy>'"),
    "empty": ("in2_input", "", "VDD_CPU_CV tells ''"),
    "more than any board draws": ("curr2_input", "32767", "VDD_CPU_CV tells 623 W"),  # 19 V x 32.767 A
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_rail_that_breaks_is_named(case: str, tmp_path: Path) -> None:
    agx_orin(tmp_path)
    meter = JetsonMeter(tmp_path)
    file, text, why = BROKEN[case]
    put(tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3" / file, text)
    with pytest.raises(MeterError) as error:
        meter.read(1.0)
    assert why in str(error.value)
    assert error.value.fix
    assert why in str(refused(tmp_path))


def test_a_missing_current_file_is_named(tmp_path: Path) -> None:
    (orin_nano(tmp_path) / "curr1_input").unlink()
    error = str(refused(tmp_path))
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
    with pytest.raises(MeterError, match=f"VDD_IN cannot be read: {error.strerror}") as told:
        meter.read(1.0)
    assert ("as root" in str(told.value)) == isinstance(error, PermissionError)


def test_zero_watts_are_an_error(tmp_path: Path) -> None:
    put(orin_nano(tmp_path) / "curr1_input", 0)
    assert "tell 0 W: VDD_IN" in str(refused(tmp_path))


def test_no_rails_at_all(tmp_path: Path) -> None:
    assert "no Jetson power rails" in str(refused(tmp_path))
    assert "no Jetson power rails" in str(refused(tmp_path / "missing"))


def test_unknown_rails_are_listed_and_never_added(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0040", 1, ("VDD_NEW", 5000, 100), ("VDD_OTHER", 5000, 100))
    error = refused(tmp_path, "NVIDIA Jetson Next\0")
    assert "it has VDD_NEW, VDD_OTHER" in error.reason
    assert "(NVIDIA Jetson Next)" in error.reason
    assert "--meter psutil" in str(error)


def test_a_sum_needs_both_chips(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0040", 1, *AGX_XAVIER[:3])
    assert "it has CPU, GPU, SOC" in refused(tmp_path, "Jetson-AGX").reason


def test_two_total_rails_are_not_guessed_at(tmp_path: Path) -> None:
    hwmon(tmp_path, "1-0040", 1, *NX)
    hwmon(tmp_path, "1-0041", 2, *NX)
    assert "VDD_IN, VDD_IN" in refused(tmp_path).reason


def test_thor_without_its_board_monitor(tmp_path: Path) -> None:
    (thor(tmp_path) / "name").unlink()
    assert "VDD_CPU_SOC_MSS" in refused(tmp_path).reason


def test_a_board_monitor_alone_must_be_that_of_a_jetson(tmp_path: Path) -> None:
    put(tmp_path / "class/hwmon/hwmon0/name", "ina238")
    put(tmp_path / "class/hwmon/hwmon0/power1_input", 30_000_000)
    assert "it has VIN" in refused(tmp_path).reason
    assert "it has VIN" in refused(tmp_path, "Some Board").reason
    assert JetsonMeter(tmp_path, model="NVIDIA Jetson AGX Thor").read(0.0).power_w == pytest.approx(30.0)
    put(tmp_path / "class/hwmon/hwmon1/name", "ina238")
    put(tmp_path / "class/hwmon/hwmon1/power1_input", 30_000_000)
    assert "it has VIN, VIN" in refused(tmp_path, "NVIDIA Jetson AGX Thor").reason


def test_a_chip_that_averages_for_long_needs_long_windows(tmp_path: Path) -> None:
    put(orin_nano(tmp_path) / "update_interval", 3379)
    assert JetsonMeter(tmp_path).min_window_s == pytest.approx(33.79)


def test_rails_with_each_others_names_are_not_believed(tmp_path: Path) -> None:
    # A JetPack 4.6 log: POM_5V_IN 3.2 W and POM_5V_GPU 8.9 W.
    iio(tmp_path, "6-0040", 0, ("POM_5V_IN", 5000, 640), ("POM_5V_GPU", 5000, 1780), ("POM_5V_CPU", 5000, 200))
    with pytest.raises(MeterError, match="each other's names: POM_5V_GPU tells 8"):
        JetsonMeter(tmp_path)
