"""Profiles: the shipped ones are valid and cite their numbers; a wrong one lists all its mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_sel.errors import UsageError
from edge_sel.profiles import METERS, Profile, detect_profile, list_profiles, load_profile

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


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_profiles_are_valid() -> None:
    assert list_profiles() == ["cloud-vm", "default", "laptop", "raspberry-pi-5"]
    for name in list_profiles():
        profile = load_profile(name)
        assert profile.name == name
        assert 0 < profile.idle_w < profile.max_w
        assert set(profile.meters) <= set(METERS)


def test_every_shipped_power_says_where_it_is_from() -> None:
    for path in (Path(__file__).parents[2] / "profiles").glob("*.toml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number in (n for n, line in enumerate(lines) if re.match("idle_w|max_w", line)):
            above = "\n".join(lines[max(0, number - 3) : number])
            assert re.search("ASSUMED|TYPICAL|Published", above), (path, lines[number])


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
    monkeypatch.setattr("edge_sel.profiles.__file__", str(package / "profiles.py"))
    assert list_profiles() == ["shipped"]
    assert load_profile("shipped").max_c == 70


def machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_detection(tmp_path: Path) -> None:
    pi = "Raspberry Pi 5 Model B Rev 1.0\0"
    assert detect_profile(machine(tmp_path / "pi", **{"proc__device-tree__model": pi}), {}) == "raspberry-pi-5"
    older = {"proc__device-tree__model": "Raspberry Pi 4 Model B"}
    assert detect_profile(machine(tmp_path / "older", **older), {}) == "default"
    assert detect_profile(machine(tmp_path / "bare"), {}) == "default"
    battery = {"sys__class__power_supply__BAT0__status": "Full", "proc__cpuinfo": "flags : fpu hypervisor\n"}
    assert detect_profile(machine(tmp_path / "laptop", **battery), {}) == "laptop"
    mains = {"sys__class__power_supply__AC__online": "1"}
    assert detect_profile(machine(tmp_path / "mains", **mains), {}) == "default"
    dmi = {"sys__class__dmi__id__sys_vendor": "Amazon EC2\n"}
    assert detect_profile(machine(tmp_path / "arm", **dmi), {}) == "cloud-vm"
    flags = {"proc__cpuinfo": "processor : 0\nflags\t\t: fpu vme hypervisor lahf_lm\n"}
    assert detect_profile(machine(tmp_path / "flags", **flags), {}) == "cloud-vm"
    tower = {"sys__class__dmi__id__sys_vendor": "Dell Inc.", "proc__cpuinfo": "flags : fpu vme\n"}
    assert detect_profile(machine(tmp_path / "tower", **tower), {}) == "default"


def test_detection_reads_the_given_sysfs(tmp_path: Path) -> None:
    (tmp_path / "class/power_supply/BAT1").mkdir(parents=True)
    assert detect_profile(tmp_path / "root", {"EDGE_SEL_SYSFS_ROOT": str(tmp_path)}) == "laptop"


def test_this_machine_is_something() -> None:
    assert detect_profile() in list_profiles()
