"""Profiles: the shipped ones are valid and cite their numbers; a wrong one lists all its mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_sel.config.profiles import METERS, Profile, detect_profile, list_profiles, load_profile
from edge_sel.errors import UsageError

GOOD = """
[power]
idle_w = 2
max_w = 8.5
meters = ["psutil"]
[thermal]
max_c = 70
[runtime]
threads = 2
batch_size = 4
"""


SHIPPED = Path(__file__).parents[2] / "profiles"
PIS = ("raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2")
OTHERS = ("arm-board", "rk3588-board")
THROTTLES = {
    "jetson-nano": 97.0,
    "jetson-xavier-nx": 90.0,
    "jetson-agx-xavier": 90.0,
    "jetson-orin-nano": 99.0,
    "jetson-orin-nx": 99.0,
    "jetson-agx-orin": 99.0,
    "jetson-thor": 109.0,
    "jetson-tx2": 95.5,
    "raspberry-pi-3": 80.0,
    "raspberry-pi-zero-2": 80.0,
    "raspberry-pi-4": 80.0,
    "raspberry-pi-5": 80.0,
}
JETSONS = tuple(name for name in THROTTLES if name.startswith("jetson"))


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_profiles_are_valid() -> None:
    assert list_profiles() == sorted(["cloud-vm", "default", "desktop-gpu", "laptop", *PIS, *OTHERS, *JETSONS])
    for name in list_profiles():
        profile = load_profile(name)
        assert profile.name == name
        assert 0 < profile.idle_w < profile.max_w
        assert set(profile.meters) <= set(METERS)
        assert profile.meters[-1] == "psutil", "the one that always works comes last"
        assert profile.threads is not None and profile.batch_size is not None
        assert (profile.max_c is None) == (name == "cloud-vm")


@pytest.mark.parametrize("name", JETSONS)
def test_a_jetson_asks_its_own_rails_first_and_never_nvml(name: str) -> None:
    assert load_profile(name).meters == ("jetson", "psutil")


@pytest.mark.parametrize(("name", "throttles_c"), THROTTLES.items())
def test_a_board_stays_below_the_degrees_at_which_it_is_throttled(name: str, throttles_c: float) -> None:
    profile = load_profile(name)
    assert profile.max_c is not None and 60 <= profile.max_c < throttles_c


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_number_of_watts_and_degrees_says_where_it_is_from(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and max(map(len, lines)) <= 120
    numbers = [n for n, line in enumerate(lines) if re.match("idle_w|max_w|max_c", line)]
    assert len(numbers) == 3 or path.stem == "cloud-vm"
    for number in numbers:
        first = number
        while lines[first - 1].startswith("#"):
            first -= 1
        assert re.match("# (Published: |TYPICAL|ASSUMED)", lines[first]), (path, lines[number])


def test_a_profile_of_your_own(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, GOOD))
    assert profile == Profile("mine", 2.0, 8.5, ("psutil",), 70.0, 2, 4)
    assert isinstance(profile.idle_w, float)


def test_the_least_a_profile_must_say(tmp_path: Path) -> None:
    profile = load_profile(str(write(tmp_path, "[power]\nidle_w = 0\nmax_w = 1\n")))
    assert (profile.meters, profile.max_c, profile.threads, profile.batch_size) == (METERS, None, None, None)


def test_all_mistakes_of_a_profile_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'idel = 1\n[power]\nidle_w = "2"\nmeters = ["nvml", "sun"]\nmax_watt = 3\n'
        "[thermal]\nmax_c = true\n[runtime]\nthreads = 1.5\nbatch_size = 0\n",
    )
    with pytest.raises(UsageError) as error:
        load_profile(path)
    text = str(error.value)
    assert "\n" not in text
    for part in (
        f"idel is not known (file:{path}): did you mean ",
        f"power.max_watt is not known (file:{path}): did you mean power.max_w?",
        f"power.idle_w = '2' (file:{path}) must be a number at least 0",
        "power.meters = ['nvml', 'sun']",
        "must be a list of jetson, rapl, nvml, battery, psutil",
        "power.max_w is missing",
        "thermal.max_c = True",
        "must be a number above 0 and at most 150",
        "runtime.threads = 1.5",
        "must be a whole number at least 0",
        "runtime.batch_size = 0",
    ):
        assert part in text
    assert "power.idle_w is missing" not in text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[power]\nidle_w = 5\nmax_w = 5\n", "power.max_w must be above power.idle_w"),
        ("[power]\nidle_w = nan\nmax_w = inf\n", "power.idle_w = nan"),
        ("[power]\nidle_w = 1\nmax_w = 2\nmeters = []\n", "a list of jetson, rapl, nvml, battery, psutil"),
        (
            "[power]\nidle_w = 1\nmax_w = 2\nmeters = ['nvml', 'nvml']\n",
            "a list of jetson, rapl, nvml, battery, psutil",
        ),
        ("[power]\nidle_w = 1\nmax_w = 2\nmeters = [['nvml']]\n", "a list of jetson, rapl, nvml, battery, psutil"),
        ("[power]\nidle_w = 1\nmax_w = 2\n[powr]\n", "powr is not known"),
        ("power = 3\n", "power = 3"),
        ("[power\n", "cannot be read as TOML"),
    ],
)
def test_a_bad_profile(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load_profile(path)
    assert str(path) in str(error.value)
    if part != "power = 3":
        assert part in str(error.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read as TOML"):
        load_profile(path)


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no profile 'raspberry-pi5': did you mean raspberry-pi-5"):
        load_profile("raspberry-pi5")
    with pytest.raises(UsageError, match="No such file or directory: /nowhere/x"):
        load_profile("/nowhere/x.toml")


def test_profiles_inside_the_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "edge_sel"
    (package / "_profiles").mkdir(parents=True)
    write(package / "_profiles", GOOD, "shipped.toml")
    monkeypatch.setattr("edge_sel.config.profiles.__file__", str(package / "config" / "profiles.py"))
    assert list_profiles() == ["shipped"]
    assert load_profile("shipped").max_c == 70


def machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


# What boards tell: their profile, model, and compatible. On the carrier of a Nano sits a Xavier NX; JetPack 5 leaves
# out "Jetson"; one carrier's model names an Orin NX that is a Nano; the quill is a TX2.
BOARDS = [
    tuple(part.strip() for part in line.split("|"))
    for line in """\
jetson-nano | NVIDIA Jetson Nano Developer Kit | nvidia,p3449-0000-b00+p3448-0000-b00 nvidia,jetson-nano nvidia,tegra210
jetson-nano | NVIDIA Jetson Nano 2GB Developer Kit | nvidia,p3542-0000+p3448-0003 nvidia,tegra210
jetson-nano | NVIDIA Jetson Nano Developer Kit | nvidia,p3450-0000 nvidia,tegra210
jetson-xavier-nx | NVIDIA Jetson Xavier NX Developer Kit | nvidia,p3509-0000+p3668-0000 nvidia,tegra194
jetson-xavier-nx | NVIDIA Jetson Xavier NX Developer Kit | nvidia,p3449-0000+p3668-0001 nvidia,p3668-0001 nvidia,tegra194
jetson-agx-xavier | Jetson-AGX | nvidia,galen nvidia,jetson-xavier nvidia,p2822-0000+p2888-0001
jetson-agx-xavier | Jetson-AGX |
jetson-agx-xavier | NVIDIA Jetson AGX Xavier Developer Kit | nvidia,p2972-0000 nvidia,tegra194
jetson-orin-nano | NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super | nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234
jetson-orin-nano | NVIDIA Jetson Orin Nano Developer Kit | nvidia,p3768-0000+p3767-0005 nvidia,p3767-0005 nvidia,tegra234
jetson-orin-nano | NVIDIA Orin Nano Developer Kit |
jetson-orin-nano | NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super | nvidia,p3768-0000+p3767-0003 nvidia,p3767-0003 nvidia,tegra234
jetson-orin-nx | NVIDIA Jetson Orin NX Engineering Reference Developer Kit | nvidia,p3768-0000+p3767-0000 nvidia,p3767-0000 nvidia,tegra234
jetson-orin-nx | NVIDIA Orin NX Developer Kit |
jetson-agx-orin | NVIDIA Jetson AGX Orin Developer Kit | nvidia,p3737-0000+p3701-0005 nvidia,p3701-0005 nvidia,tegra234
jetson-agx-orin | Jetson AGX Orin |
jetson-thor | NVIDIA Jetson AGX Thor Developer Kit | nvidia,p4071-0000+p3834-0008 nvidia,p3834-0008 nvidia,tegra264
jetson-tx2 | quill | nvidia,quill nvidia,p2597-0000+p3310-1000 nvidia,tegra186
raspberry-pi-5 | Raspberry Pi 5 Model B Rev 1.0 | raspberrypi,5-model-b brcm,bcm2712
raspberry-pi-5 | Raspberry Pi 500 Rev 1.0 | raspberrypi,500 brcm,bcm2712
raspberry-pi-5 | Raspberry Pi Compute Module 5 Rev 1.0 |
raspberry-pi-4 | Raspberry Pi 4 Model B Rev 1.4 | raspberrypi,4-model-b brcm,bcm2711
raspberry-pi-4 | Raspberry Pi 4 Model B Rev 1.4 |
raspberry-pi-4 | Raspberry Pi 400 Rev 1.0 | raspberrypi,400 brcm,bcm2711
raspberry-pi-4 | Raspberry Pi Compute Module 4 Rev 1.0 |
jetson-tx2 | NVIDIA Jetson TX2 Developer Kit | nvidia,p2771-0000 nvidia,tegra186
jetson-tx2 | lightning | nvidia,lightning nvidia,p3636-0001 nvidia,tegra186
raspberry-pi-3 | Raspberry Pi 3 Model B Plus Rev 1.3 | raspberrypi,3-model-b-plus brcm,bcm2837
raspberry-pi-3 | Raspberry Pi Compute Module 3 Rev 1.0 |
raspberry-pi-zero-2 | Raspberry Pi Zero 2 W Rev 1.0 | raspberrypi,model-zero-2-w brcm,bcm2837
raspberry-pi-zero-2 | Raspberry Pi Zero 2 W Rev 1.0 |
rk3588-board | Radxa ROCK 5B | radxa,rock-5b rockchip,rk3588
rk3588-board | Orange Pi 5 | xunlong,orangepi-5 rockchip,rk3588s
arm-board | NXP i.MX8MPlus EVK board | fsl,imx8mp-evk fsl,imx8mp
arm-board | Radxa ZERO 3 | radxa,zero-3w rockchip,rk3566
cloud-vm | linux,dummy-virt | linux,dummy-virt""".splitlines()
]


@pytest.mark.parametrize(("profile", "model", "compatible"), BOARDS)
@pytest.mark.parametrize("folder", ["proc__device-tree", "sys__firmware__devicetree__base"])
def test_boards_are_detected(tmp_path: Path, profile: str, model: str, compatible: str, folder: str) -> None:
    tree = {f"{folder}__model": f"{model}\0"}
    if compatible:
        tree[f"{folder}__compatible"] = compatible.replace(" ", "\0") + "\0"
    assert detect_profile(machine(tmp_path, **tree), {}) == profile


@pytest.mark.parametrize(("profile", "model", "compatible"), [row for row in BOARDS if row[2]])
def test_a_board_is_detected_whatever_its_carrier_calls_itself(
    tmp_path: Path, profile: str, model: str, compatible: str
) -> None:
    tree = {"model": "Somebody's box\0", "compatible": compatible.replace(" ", "\0") + "\0"}
    assert detect_profile(machine(tmp_path, **{f"proc__device-tree__{k}": v for k, v in tree.items()}), {}) == profile


def test_a_model_alone_is_enough(tmp_path: Path) -> None:
    model = "NVIDIA Jetson AGX Thor Developer Kit\0"
    assert detect_profile(machine(tmp_path, **{"proc__device-tree__model": model}), {}) == "jetson-thor"


def test_every_shipped_board_is_detected_by_something() -> None:
    assert {profile for profile, _, _ in BOARDS} == {*JETSONS, *PIS, *OTHERS, "cloud-vm"}


def pci(vendor: str, kind: str, slot: str = "0000:01:00.0") -> dict[str, str]:
    folder = f"sys__bus__pci__devices__{slot}"
    return {f"{folder}__vendor": f"{vendor}\n", f"{folder}__class": f"{kind}\n"}


BATTERY = {"sys__class__power_supply__BAT0__status": "Full\n"}
VIRTUAL = {"proc__cpuinfo": "processor : 0\nflags\t\t: fpu vme hypervisor lahf_lm\n"}
CARD = pci("0x10de", "0x030000")
JETSON = {"proc__device-tree__model": "NVIDIA Jetson AGX Orin Developer Kit\0"}


def chassis(kind: int) -> dict[str, str]:
    return {"sys__class__dmi__id__chassis_type": f"{kind}\n"}


@pytest.mark.parametrize(
    ("files", "profile"),
    [
        ({}, "default"),
        (BATTERY, "laptop"),
        (BATTERY | VIRTUAL, "laptop"),
        (BATTERY | CARD, "laptop"),
        ({"sys__class__power_supply__AC__online": "1"}, "default"),
        *((chassis(kind), "laptop") for kind in (8, 9, 10, 14, 30, 31, 32)),
        *((chassis(kind), "default") for kind in (1, 3, 6, 7, 13, 23, 35)),
        (chassis(10) | CARD, "laptop"),
        ({"sys__class__dmi__id__sys_vendor": "Amazon EC2\n"}, "cloud-vm"),
        ({"sys__class__dmi__id__product_name": "KVM Virtual Machine\n"}, "cloud-vm"),
        (VIRTUAL, "cloud-vm"),
        (VIRTUAL | CARD, "cloud-vm"),  # a card that was passed through
        ({"sys__class__dmi__id__sys_vendor": "Dell Inc.\n", "proc__cpuinfo": "flags : fpu vme\n"}, "default"),
        (CARD | chassis(3), "desktop-gpu"),
        (pci("0x10de", "0x030200"), "desktop-gpu"),  # a 3D controller, without outputs
        (pci("0x10de", "0x040300"), "default"),  # only the sound of a card
        (pci("0x10de", "0x060400"), "default"),
        (pci("0x1002", "0x030000"), "default"),  # AMD
        (pci("0x1002", "0x030000") | pci("0x10de", "0x030000", "0000:02:00.0"), "desktop-gpu"),
        ({"proc__driver__nvidia__gpus__0000:01:00.0__information": "Model: RTX\n"}, "desktop-gpu"),
        (JETSON | CARD | BATTERY | VIRTUAL, "jetson-agx-orin"),  # a board comes before all else
    ],
)
def test_computers_are_detected(tmp_path: Path, files: dict[str, str], profile: str) -> None:
    assert detect_profile(machine(tmp_path, **files), {}) == profile


def test_detection_reads_the_given_sysfs(tmp_path: Path) -> None:
    (tmp_path / "class/power_supply/BAT1").mkdir(parents=True)
    environ = {"EDGE_SEL_SYSFS_ROOT": str(tmp_path)}
    assert detect_profile(tmp_path / "root", environ) == "laptop"
    other = machine(tmp_path / "root", **BATTERY, **CARD)
    (tmp_path / "class/power_supply/BAT1").rmdir()
    assert detect_profile(other, environ) == "default", "nothing of the root's own sys counts"
    machine(tmp_path, firmware__devicetree__base__model="NVIDIA Jetson Nano Developer Kit\0")
    assert detect_profile(other, environ) == "jetson-nano"


def test_this_machine_is_something() -> None:
    assert detect_profile() in list_profiles()
