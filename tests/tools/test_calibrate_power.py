"""tools/calibrate_power.py: it measures under load, and a bad file or meter leaves one line and no harm."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.config.profiles import Profile, load_profile
from edge_sel.errors import DataError, SetupError
from edge_sel.power.psutil_model import PsutilModel

sys.path.insert(0, str(Path(__file__).parents[1] / "power"))

from power_fakes import Clock, FakeMeter

TOOL = Path(__file__).parents[2] / "tools" / "calibrate_power.py"
SPEC = importlib.util.spec_from_file_location("calibrate_power", TOOL)
assert SPEC is not None and SPEC.loader is not None
tool: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


# The line


@given(st.floats(0.1, 50), st.floats(1, 200), st.lists(st.floats(0, 1), max_size=8))
def test_points_on_a_line_give_that_line(idle_w: float, span_w: float, loads: list[float]) -> None:
    fit = tool.fit_line([tool.Point(load, idle_w + span_w * load) for load in [0.0, *loads, 1.0]])
    assert fit.idle_w == pytest.approx(idle_w, abs=1e-6)
    assert fit.max_w == pytest.approx(idle_w + span_w)
    assert fit.error_percent == pytest.approx(0, abs=1e-6) and fit.worst_percent == pytest.approx(0, abs=1e-4)


def test_the_error_is_in_per_cent() -> None:
    fit = tool.fit_line([tool.Point(0, 11), tool.Point(0, 9), tool.Point(1, 29), tool.Point(1, 31)])
    assert fit == pytest.approx((10, 30, 100 * 1 / 20, 100 * 1 / 9))


@pytest.mark.parametrize(
    ("points", "part"),
    [
        ([], "two utilisations that lie 0.2 apart"),
        ([tool.Point(0.5, 10), tool.Point(0.5, 12)], "two utilisations that lie 0.2 apart"),
        ([tool.Point(0.1, 10), tool.Point(0.2, 12)], "two utilisations that lie 0.2 apart"),
        ([tool.Point(0, 12), tool.Point(1, 10)], "do not rise with the load (-2.00 W"),
        ([tool.Point(0, 12), tool.Point(1, 12)], "do not rise with the load (+0.00 W"),
        ([tool.Point(0, 12), tool.Point(1, 12.001)], "do not rise with the load (+0.00 W"),
        ([tool.Point(0.5, 1), tool.Point(1, 12)], "the line gives -10.00 W at rest"),
    ],
)
def test_points_that_give_no_line_are_refused_with_the_reason(points: list[Any], part: str) -> None:
    with pytest.raises(DataError) as error:
        tool.fit_line(points, "plug.csv")
    assert part in str(error.value) and "plug.csv" in str(error.value)


def test_points_just_far_enough_apart_are_enough() -> None:
    assert tool.fit_line([tool.Point(0.1, 10), tool.Point(0.3, 12)]).max_w == pytest.approx(19)


def test_columns_may_stand_in_any_order_among_others(tmp_path: Path) -> None:
    path = tmp_path / "plug.csv"
    path.write_text("\ufeffwatts, note, utilisation\n5.5, rest, 0\n\n12, busy, 1.0\n", encoding="utf-8")
    assert tool.read_points(path) == [tool.Point(0, 5.5), tool.Point(1, 12)]


@given(
    fit=st.builds(tool.Fit, st.floats(0, 100), st.floats(101, 500), st.floats(0, 50), st.floats(0, 100)),
    max_c=st.none() | st.floats(1, 150),
    threads=st.none() | st.integers(0, 64),
    batch_size=st.none() | st.integers(1, 512),
    note=st.text(),
)
def test_what_is_written_can_be_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    fit: Any,
    max_c: float | None,
    threads: int | None,
    batch_size: int | None,
    note: str,
) -> None:
    base = Profile("base", 1.0, 2.0, ("jetson", "psutil"), max_c, threads, batch_size)
    path = tmp_path_factory.getbasetemp() / "mine.toml"
    path.write_text(tool.profile_toml(fit, base, [note, "x y " * 100]), encoding="utf-8")
    loaded = load_profile(path)
    assert (loaded.idle_w, loaded.max_w) == pytest.approx((fit.idle_w, fit.max_w), abs=1e-3)
    assert (loaded.meters, loaded.max_c) == (base.meters, max_c)
    assert (loaded.threads, loaded.batch_size) == (threads, batch_size)
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120


# Measuring

GOOD = "utilisation,watts\n0,5\n0.5,10\n1,15\n"


class Machine:
    """Four cores, of which ``load`` are busy as time passes; it draws 3 W to 11 W and some noise."""

    def __init__(self, noise_w: float = 0.0) -> None:
        self.clock, self.load, self.busy_s, self.noise_w = Clock(), 0.0, 0.0, noise_w
        self.random = random.Random(1)
        self.loads: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.busy_s += self.load * seconds

    def watts(self, now_s: float) -> float:
        return 3 + 8 * self.load / 4 + self.random.uniform(-self.noise_w, self.noise_w)

    @contextmanager
    def busy(self, cores: float) -> Iterator[None]:
        self.load = cores
        self.loads.append(cores)
        yield
        self.load = 0.0

    def measure(self, meter: Any, loads: list[float], seconds: float = 5.0) -> list[Any]:
        times = lambda: SimpleNamespace(user=self.busy_s)  # noqa: E731
        model = PsutilModel(0, 1, cores=4, cpu_times=times, process_time=lambda: 0.0, clock=self.clock)
        by = {"load": self.busy, "model": model, "clock": self.clock, "sleep": self.sleep}
        points: list[Any] = tool.measure(meter, loads, seconds, tell=lambda line: None, **by)
        return points


@pytest.mark.parametrize("counter", [True, False])
def test_a_noisy_meter_gives_the_constants_back(counter: bool) -> None:
    machine = Machine(noise_w=0.5)
    meter = FakeMeter(machine.clock, machine.watts, counter=counter)
    points = machine.measure(meter, tool.levels(4))
    assert [p.utilisation for p in points] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    fit = tool.fit_line(points)
    assert fit.idle_w == pytest.approx(3, rel=0.05) and fit.max_w == pytest.approx(11, rel=0.02)
    assert 0 < fit.error_percent < 3
    assert machine.loads == [0, 1, 2, 3, 4] and meter.closed == 1


def test_a_slow_meter_is_given_its_time() -> None:
    machine = Machine()
    meter = FakeMeter(machine.clock, machine.watts)
    meter.min_window_s = 60.0
    start_s = machine.clock()
    machine.measure(meter, [0.0, 4.0], seconds=1.0)
    assert machine.clock() - start_s >= 120


def test_a_meter_that_is_lost_ends_the_measurement() -> None:
    machine = Machine()
    meter = FakeMeter(machine.clock, machine.watts)
    meter.power_w = lambda now_s: meter.unplug() or 5.0 if machine.load else 5.0  # type: ignore[func-returns-value]
    with pytest.raises(SetupError, match="the meter fake was lost: it is gone"):
        machine.measure(meter, [0.0, 4.0])
    assert meter.closed == 1


@given(st.integers(1, 512))
def test_loads_go_from_none_to_all_cores(cores: int) -> None:
    loads = tool.levels(cores)
    assert loads[0] == 0 and loads[-1] == cores
    assert loads == sorted(set(loads)) and 3 <= len(loads) <= 9


def test_processes_that_load_cores_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(tool.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with tool.busy(1.5):
        assert [process.args[-1] for process in started] == ["1.0", "0.5"]
        assert all(process.poll() is None for process in started)
    assert all(process.poll() is not None for process in started)
    monkeypatch.setattr(tool, "LOAD", "pass")
    with pytest.raises(SetupError, match="a process that loads a core has ended"), tool.busy(1):
        started[-1].wait()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> tuple[int, str]:
        """Exit status and stderr."""
        monkeypatch.setattr(sys, "argv", ["calibrate_power.py", *map(str, words)])
        status = 0
        try:
            tool.main()
        except SystemExit as exit:
            status = int(exit.code or 0)
        return status, capsys.readouterr().err

    return call


def csv(folder: Path, text: str) -> Path:
    path = folder / "plug.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_watts_of_a_plug_meter_become_a_profile(tmp_path: Path, run: Any) -> None:
    out = tmp_path / "mine.toml"
    status, stderr = run("--out", out, "--watts-from", csv(tmp_path, GOOD), "--profile", "raspberry-pi-5")
    assert (status, stderr) == (0, "")
    mine, base = load_profile(out), load_profile("raspberry-pi-5")
    assert (mine.idle_w, mine.max_w) == (5, 15)
    assert (mine.meters, mine.max_c, mine.threads, mine.batch_size) == (
        base.meters,
        base.max_c,
        base.threads,
        base.batch_size,
    )
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".toml"] == ["mine.toml"]


def test_watts_of_a_meter_become_a_profile(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = tmp_path / "mine.toml", Clock()
    monkeypatch.setattr(tool, "find_meter", lambda *given, **options: (FakeMeter(clock), []))
    monkeypatch.setattr(tool, "measure", lambda *given: [tool.Point(0, 4), tool.Point(0.5, 8.2), tool.Point(1, 12)])
    assert run("--out", out)[0] == 0
    text = out.read_text(encoding="utf-8")
    for part in (os.uname().nodename, date.today().isoformat(), "the meter fake", "off by 1.2 % (rms)", "0.500, 8.20"):
        assert part in text
    assert load_profile(out).idle_w == pytest.approx(4.067, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "part", "status"),
    [
        ("load,watts\n0,5\n1,15\n", "no column utilisation", 4),
        ("utilisation;watts\n0;5\n1;15\n", "no column utilisation or watts", 4),
        ("", "no column utilisation or watts", 4),
        ("utilisation,watts\n0,5\n1,lots\n", "line 3 (such as 0.5,12.3)", 4),
        ("utilisation,watts\n0,5\n1\n", "watts is None, not a number", 4),
        ("utilisation,watts\n0,nan\n1,15\n", "watts is nan", 4),
        ("utilisation,watts\n0,0\n1,15\n", "watts is 0, which no computer draws", 4),
        ("utilisation,watts\n0,5\n50,15\n", "utilisation is 50, not 0 to 1", 4),
        ("utilisation,watts\n", "two utilisations that lie 0.2 apart are needed", 4),
        ("utilisation,watts\n0.5,5\n0.5,15\n", "two utilisations that lie 0.2 apart are needed", 4),
        ("utilisation,watts\n0,15\n1,5\n", "do not rise with the load", 4),
        (None, "cannot be read: No such file or directory", 2),
        ("\0\xff", "no column", 4),
    ],
)
def test_a_bad_file_leaves_the_profile_as_it_was(
    tmp_path: Path, run: Any, text: str | None, part: str, status: int
) -> None:
    out = tmp_path / "mine.toml"
    out.write_text("old", encoding="utf-8")
    path = tmp_path / "plug.csv" if text is None else csv(tmp_path, text)
    found, stderr = run("--out", out, "--force", "--watts-from", path)
    assert found == status and part in stderr and str(path) in stderr
    assert stderr.startswith("calibrate_power: ") and stderr.count("\n") == 1
    assert out.read_text(encoding="utf-8") == "old"
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_is_not_text_is_refused_in_one_line(tmp_path: Path, run: Any) -> None:
    (tmp_path / "plug.csv").write_bytes(b"utilisation,watts\n\xff\xfe\n")
    status, stderr = run("--out", tmp_path / "mine.toml", "--watts-from", tmp_path / "plug.csv")
    assert status == 4 and "is not CSV" in stderr and stderr.count("\n") == 1


def test_what_could_not_be_loaded_is_not_kept(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "mine.toml"
    out.write_text("old", encoding="utf-8")
    monkeypatch.setattr(tool, "profile_toml", lambda *given: "[power]\n")
    status, stderr = run("--out", out, "--force", "--watts-from", csv(tmp_path, GOOD))
    assert status == 2 and "power.idle_w is missing" in stderr and stderr.count("\n") == 1
    assert out.read_text(encoding="utf-8") == "old" and not list(tmp_path.glob(".*"))


def test_nothing_is_replaced_unasked(tmp_path: Path, run: Any) -> None:
    out, path = tmp_path / "mine.toml", csv(tmp_path, GOOD)
    out.write_text("old", encoding="utf-8")
    status, stderr = run("--out", out, "--watts-from", path)
    assert status == 2 and "is there already" in stderr and "--force" in stderr
    assert out.read_text(encoding="utf-8") == "old"
    assert run("--out", out, "--watts-from", path, "--force")[0] == 0
    assert load_profile(out).max_w == 15


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--out", "mine.txt"], "a profile is a .toml file"),
        (["--out", "nowhere/mine.toml"], "there is no such folder: nowhere"),
        (["--out", "mine.toml", "--meter", "nvml"], "'nvml' is not one of"),
        (["--out", "mine.toml", "--profile", "jetson-orin-nx2"], "did you mean jetson-orin-nx"),
        ([], "Missing option '--out'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    words: list[str], part: str, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, stderr = run(*words)
    assert status == 2 and part in stderr and stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_a_meter_that_measures_every_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    command = [sys.executable, str(TOOL), "--out", str(tmp_path / "mine.toml")]
    environ = {**os.environ, "EDGE_SEL_SYSFS_ROOT": str(tmp_path / "sys")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    for part in ("no meter measures here", "jetson: ", "rapl: ", "battery: ", "--watts-from", "edge-sel doctor"):
        assert part in done.stderr
    assert not (tmp_path / "mine.toml").exists()
