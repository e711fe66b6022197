"""Trees of every Jetson's power rails, laid out as its kernel does; watts are worked out by hand."""

from __future__ import annotations

from pathlib import Path

from power_fakes import write

Channel = tuple[str, int, int]  # label, mV, mA


def iio(sysfs: Path, chip: str, number: int, *channels: Channel, power: bool = True) -> Path:
    """JetPack 4; channels count from 0."""
    folder = sysfs / f"bus/i2c/drivers/ina3221x/{chip}/iio:device{number}"
    for n, (label, mv, ma) in enumerate(channels):
        write(folder / f"rail_name_{n}", label)
        write(folder / f"in_voltage{n}_input", mv)
        write(folder / f"in_current{n}_input", ma)
        if power:
            write(folder / f"in_power{n}_input", mv * ma // 1000)
    return folder


def hwmon(sysfs: Path, chip: str, number: int, *channels: Channel) -> Path:
    """JetPack 5 and 6; channels count from 1, shunt voltages follow, 7 is their sum."""
    folder = sysfs / f"bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{number}"
    write(folder / "name", "ina3221")
    for n, (label, mv, ma) in enumerate(channels, start=1):
        write(folder / f"in{n}_label", label)
        write(folder / f"in{n}_input", mv)
        write(folder / f"curr{n}_input", ma)
        write(folder / f"in{n + 3}_input", ma * 5)
    write(folder / "in7_label", "sum of shunt voltages")
    write(folder / "in7_input", 9999)
    write(folder / "curr7_input", 9999)
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
    write(folder / "name", "ina238")
    write(folder / "power1_input", 23_456_000)
    for number in (6, 7):
        write(sysfs / f"class/hwmon/hwmon{number}/name", f"ucsi_source_psy_2_000810{number}")
        write(sysfs / f"class/hwmon/hwmon{number}/power1_input", 60_000_000)
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
