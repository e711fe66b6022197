"""The metrics file: right at any time, for whoever reads it."""

from __future__ import annotations

import errno
import os
import re
import threading
from pathlib import Path

import pytest

from edge_sel import __version__
from edge_sel.edge.outputs import openmetrics as metrics
from edge_sel.edge.outputs.openmetrics import REASONS, Family, MetricsFile, to_text
from edge_sel.power import EnergyRecorder, MeterError, Reading
from tests.edge.runs import StopAt, no_meter, session

NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
LABEL = rf'{NAME}="(?:[^"\\\n]|\\["\\n])*"'
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ({NUMBER})")
META = re.compile(rf"# (HELP|TYPE|UNIT) ({NAME}) (.+)")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Lamp:
    """10 W, told by a counter."""

    name, source, min_window_s = "lamp", "measured", 0.0

    def __init__(self) -> None:
        self.broken = False
        self.reads = 0

    def read(self, now_s: float) -> Reading:
        self.reads += 1
        if self.broken:
            raise MeterError("it is gone")
        return Reading(now_s, 10.0 * now_s, None)

    def close(self) -> None:
        pass


class Bench:
    """A recorder by hand, a metrics file and a clock."""

    def __init__(self, folder: Path, **given) -> None:
        self.clock, self.lamp, self.temp_c = Clock(), Lamp(), 41.5
        self.recorder = EnergyRecorder(self.lamp, self.clock, background=False, temperature=lambda: self.temp_c)
        self.recorder.sample_once()
        self.path = folder / "edge_sel.prom"
        self.errors: list[str] = []
        given = {"clock": self.clock, "on_error": self.errors.append, "run": "runs/a", **given}
        self.file = MetricsFile(self.path, self.recorder, **given)

    def wait(self, seconds: float) -> None:
        for _ in range(steps := max(1, round(2 * seconds))):
            self.clock.now_s += seconds / steps
            self.recorder.sample_once()

    def tell(self, event: str, **details) -> dict[str, float]:
        self.file({"event": event, **details})
        return self.samples()

    def samples(self) -> dict[str, float]:
        return samples(self.path)


def samples(path: Path) -> dict[str, float]:
    """Every sample by its name and labels, of a file whose grammar is checked on the way."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n# EOF\n") and text.count("# EOF") == 1 and "\n\n" not in text
    found: dict[str, float] = {}
    family, kind, told = "", "", set()
    for line in text.splitlines()[:-1]:
        if meta := META.fullmatch(line):
            word, name, rest = meta.groups()
            if word == "HELP":
                assert name not in told, f"{name} twice"
                told.add(family := name)
            assert name == family, line
            if word == "TYPE":
                kind = rest
                assert kind in ("counter", "gauge"), "node_exporter drops the whole file for any other"
            if word == "UNIT":
                assert name.endswith(f"_{rest}")
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            name, labels, value = sample.groups()
            assert name == family + ("_total" if kind == "counter" else ""), line
            key = f"{name}{{{labels}}}" if labels else name
            assert key not in found, line
            found[key] = float(value)
    return found


LAMP = '{meter="lamp",source="measured"}'


def test_a_run_from_its_start_to_its_end(tmp_path):
    bench = Bench(tmp_path)
    first = bench.tell("started", images=90, guard=10)
    assert first["edge_sel_epoch"] == 0 and first["edge_sel_steps_total"] == 0
    assert "edge_sel_guard_accuracy_ratio" not in first and "edge_sel_pressure_ratio" not in first
    bench.tell("evaluated", accuracy={"before": 0.5, "after": None, "guard_before": 0.25, "guard_after": None})
    bench.tell("rung", plan="bn", epochs=1)
    bench.wait(2.0)
    now = bench.tell("step", plan_epoch=0, cursor=32, step=3)
    assert now[f"edge_sel_energy_joules_total{LAMP}"] == pytest.approx(20)
    assert now[f"edge_sel_power_watts{LAMP}"] == pytest.approx(10)
    assert now["edge_sel_temperature_celsius"] == 41.5
    assert now["edge_sel_steps_total"] == 3 and now["edge_sel_guard_accuracy_ratio"] == 0.25
    assert now[f'edge_sel_info{{run="runs/a",plan="bn",version="{__version__}"}}'] == 1
    bench.tell("epoch", epoch=1, plan="bn", trained=64, guard_acc=0.5, active_rate=1.0)
    bench.tell("rung", plan="first", epochs=3)
    bench.wait(2.0)
    bench.tell("step", plan_epoch=0, cursor=16, step=2)
    now = bench.tell("epoch", epoch=2, plan="first", trained=40, guard_acc=0.75, active_rate=0.625)
    assert now["edge_sel_epoch"] == 2 and now["edge_sel_steps_total"] == 5, "steps of a new rung begin at 0"
    assert now["edge_sel_images_trained_total"] == 104
    assert now["edge_sel_guard_accuracy_ratio"] == 0.75 and now["edge_sel_gate_rate_ratio"] == 0.625
    assert all(now[f'edge_sel_stopped{{reason="{reason}"}}'] == 0 for reason in REASONS)
    bench.tell("guard", before=0.25, after=0.8, shipped=True)
    now = bench.tell("finished", shipped=True)
    assert now["edge_sel_guard_accuracy_ratio"] == 0.8
    assert {r for r in REASONS if now[f'edge_sel_stopped{{reason="{r}"}}']} == {"done"}


def test_a_model_that_stays_behind_is_not_the_accuracy(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    assert bench.tell("guard", before=0.5, after=0.25, shipped=False)["edge_sel_guard_accuracy_ratio"] == 0.5


@pytest.mark.parametrize("reason", ["budget", "another"])
def test_a_limit_that_ends_the_run_is_the_reason(tmp_path, reason):
    bench = Bench(tmp_path)
    bench.tell("started")
    bench.tell("stopped", reason=reason)
    now = bench.tell("finished", shipped=True)  # what was learnt before it is guarded and written all the same
    assert {key for key, value in now.items() if "stopped" in key and value} == {
        f'edge_sel_stopped{{reason="{reason}"}}'
    }


def test_the_governor(tmp_path):
    bench = Bench(tmp_path)
    assert "edge_sel_paused" not in bench.tell("started")
    now = bench.tell("governor", action="pause", limit="temperature", why="75 °C", pressure=0.5)
    assert now["edge_sel_paused"] == 1 and now["edge_sel_pressure_ratio"] == 0.5
    now = bench.tell("governor", action="resume", limit="temperature", paused_s=3.0, duty=1.0)
    assert now["edge_sel_paused"] == 0 and now["edge_sel_pressure_ratio"] == 0.5


def test_a_resumed_run_counts_what_it_does_itself(tmp_path):
    bench = Bench(tmp_path)
    assert "edge_sel_epoch" not in bench.tell("resumed", images=90, guard=10)
    bench.tell("rung", plan="first", epochs=3)
    bench.wait(2.0)
    assert bench.tell("step", step=57)["edge_sel_steps_total"] == 0
    bench.wait(2.0)
    assert bench.tell("step", step=59)["edge_sel_steps_total"] == 2
    assert bench.tell("epoch", epoch=4, trained=10)["edge_sel_epoch"] == 4
    bench.tell("rung", plan="full", epochs=3)
    bench.wait(2.0)
    assert bench.tell("step", step=4)["edge_sel_steps_total"] == 6


def test_images_go_up_inside_an_epoch_where_steps_tell_them(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    told = []
    for event in ("step", 16), ("step", 32), ("epoch", 40), ("step", 0), ("step", 16), ("epoch", 24):
        bench.wait(2.0)
        told.append(bench.tell(event[0], step=1, trained=event[1])["edge_sel_images_trained_total"])
    assert told == [16, 32, 40, 40, 56, 64]


def test_what_is_unknown_has_no_line(tmp_path):
    recorder = no_meter()
    file = MetricsFile(tmp_path / "m.prom", recorder, "run")
    file({"event": "resumed"})
    file({"event": "epoch", "epoch": 1, "trained": 0, "guard_acc": float("nan"), "active_rate": None, "pressure": None})
    assert {key.partition("{")[0] for key in samples(tmp_path / "m.prom")} == {
        "edge_sel_epoch", "edge_sel_steps_total", "edge_sel_images_trained_total", "edge_sel_stopped", "edge_sel_info",
    }  # fmt: skip


def test_a_lost_meter_takes_its_series_away(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    bench.wait(2.0)
    assert f"edge_sel_power_watts{LAMP}" in bench.tell("epoch", epoch=1)
    bench.lamp.broken = True
    bench.wait(2.0)
    assert not any("joules" in key or "watts" in key for key in bench.tell("epoch", epoch=2))


def test_no_joules_before_there_was_time_to_spend_any(tmp_path):
    bench = Bench(tmp_path)
    assert not any("joules" in key or "watts" in key for key in bench.tell("started"))


def test_power_over_a_gap_is_not_known(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    bench.wait(0.5)
    bench.clock.now_s += 600.0  # asleep
    bench.wait(0.5)
    assert f"edge_sel_power_watts{LAMP}" not in bench.tell("epoch", epoch=1)
    bench.wait(2.0)
    assert bench.tell("epoch", epoch=2)[f"edge_sel_power_watts{LAMP}"] == pytest.approx(10)


def test_power_stays_between_two_looks_that_are_too_close(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    bench.wait(1.0)
    assert bench.tell("epoch", epoch=1)[f"edge_sel_power_watts{LAMP}"] == pytest.approx(10)
    bench.wait(0.001)
    assert bench.tell("epoch", epoch=2)[f"edge_sel_power_watts{LAMP}"] == pytest.approx(10)


def test_writes_once_a_period_and_at_once_for_what_matters(tmp_path):
    bench = Bench(tmp_path, period_s=5.0)
    bench.tell("started")
    bench.wait(4.9)
    assert bench.tell("step", step=1)["edge_sel_steps_total"] == 0, "too early"
    bench.wait(0.2)
    assert bench.tell("step", step=2)["edge_sel_steps_total"] == 2
    for number, kind in enumerate(sorted(metrics.WRITTEN_AT_ONCE)):
        bench.path.unlink()
        bench.tell(kind, epoch=number)
    bench.path.unlink()
    bench.file({"event": "checkpoint", "file": "c"})
    assert not bench.path.exists()


def test_what_the_recorders_thread_tells_is_left_to_the_next_write(tmp_path):
    bench = Bench(tmp_path)
    bench.file({"event": "meter_lost", "meter": "lamp", "why": "it is gone"})
    assert not bench.path.exists()


def test_the_temperature_is_that_of_now(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    bench.temp_c = 30.0
    bench.wait(2.0)
    assert bench.tell("epoch", epoch=1)["edge_sel_temperature_celsius"] == 30.0


def test_never_reads_the_meter(tmp_path):
    bench = Bench(tmp_path)
    reads = bench.lamp.reads
    for number in range(5):
        bench.clock.now_s += 2.0
        bench.tell("epoch", epoch=number)
    assert bench.lamp.reads == reads


@pytest.mark.parametrize("run", ['a"b', "a\\b", "a\nb", "a\\nb", 'x",y="z', "grün", "a b{c}"])
def test_labels(tmp_path, run):
    bench = Bench(tmp_path, run=run)
    labels = next(key for key in bench.tell("started") if key.startswith("edge_sel_info"))
    told = re.match(r'edge_sel_info\{run="((?:[^"\\]|\\.)*)",plan="",version=', labels)
    assert told and re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), told[1]) == run


def test_a_name_that_is_no_utf_8_stops_nothing(tmp_path):
    bench = Bench(tmp_path, run=os.fsdecode(b"a\xff"))
    assert any("a?" in key for key in bench.tell("started")) and not bench.errors


def test_text():
    family = Family(
        "a_joules", "counter", "joules", "All.", [({}, 0.1), ({"b": "c"}, 1e-9), ({}, None), ({}, float("inf"))]
    )
    nothing = Family("n", "gauge", "", "Nothing.", [({}, None)])
    assert to_text([family, nothing, Family("g", "gauge", "", "G.", [({}, 3)])]) == (
        "# HELP a_joules All.\n# TYPE a_joules counter\n# UNIT a_joules joules\n"
        'a_joules_total 0.1\na_joules_total{b="c"} 1e-09\n# HELP g G.\n# TYPE g gauge\ng 3.0\n# EOF\n'
    )
    assert to_text([]) == "# EOF\n"


def test_a_reader_never_sees_half_a_file(tmp_path):
    bench = Bench(tmp_path)
    bench.tell("started")
    seen, over = [], threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(bench.path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(300):
            bench.file({"event": "epoch", "epoch": number})
    finally:
        over.set()
        reader.join()
    assert seen and all(text.endswith(b"\n# EOF\n") for text in seen)
    assert [path.name for path in tmp_path.iterdir()] == [bench.path.name], "nothing is left over"


def test_the_half_file_is_in_the_same_folder_and_no_collector_takes_it(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    made = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (made.append(self), replace(self, target))[1])
    bench.tell("started")
    assert [path.parent for path in made] == [tmp_path] and not made[0].name.endswith(".prom")


def test_others_may_read_it(tmp_path):
    bench = Bench(tmp_path)
    before = os.umask(0o022)
    try:
        bench.tell("started")
    finally:
        os.umask(before)
    assert bench.path.stat().st_mode & 0o777 == 0o644


def test_a_failing_disk_is_told_once_and_stops_nothing(tmp_path, monkeypatch):
    bench = Bench(tmp_path)

    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        bench.file({"event": "started"})
        bench.file({"event": "epoch", "epoch": 1})
    assert len(bench.errors) == 1 and "No space left" in bench.errors[0] and str(bench.path) in bench.errors[0]
    assert bench.tell("epoch", epoch=2)["edge_sel_epoch"] == 2, "there is space again"


@pytest.mark.parametrize("place", ["no/such/folder.prom", "folder"])
def test_a_place_that_cannot_be(tmp_path, place):
    (tmp_path / "folder").mkdir()
    errors: list[str] = []
    file = MetricsFile(tmp_path / place, no_meter(), "run", on_error=errors.append)
    file({"event": "started"})
    file({"event": "epoch", "epoch": 1})
    assert len(errors) == 1 and list(tmp_path.rglob("*")) == [tmp_path / "folder"]


@pytest.mark.parametrize("boundary", [None, 4])
def test_of_a_real_session(tmp_path, boundary):
    bench = Bench(tmp_path)
    should_stop = (lambda: None) if boundary is None else StopAt(boundary)
    result = session(tmp_path / "run", recorder=bench.recorder, listener=bench.file, should_stop=should_stop).run()
    now = bench.samples()
    assert now["edge_sel_epoch"] == len(result["epochs"])
    reason = "done" if boundary is None else "signal"
    assert now[f'edge_sel_stopped{{reason="{reason}"}}'] == 1 and not bench.errors
    if boundary is None:
        assert now["edge_sel_guard_accuracy_ratio"] == pytest.approx(
            result["accuracy"]["guard_after" if result["shipped"] else "guard_before"]
        )
        assert now["edge_sel_images_trained_total"] == sum(epoch["trained"] for epoch in result["epochs"])
        assert now["edge_sel_steps_total"] > 0


def families(bench: Bench, parse) -> dict[str, object]:
    bench.tell("started")
    bench.wait(2.0)
    bench.tell("governor", action="pressure", pressure=0.5)
    bench.tell("epoch", epoch=1, trained=16, guard_acc=0.5, active_rate=0.5)
    return {family.name: family for family in parse(bench.path.read_text(encoding="utf-8"))}


def test_the_reference_parser_reads_it(tmp_path):
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    found = families(Bench(tmp_path, run='a"b\\c\nd'), parser.text_string_to_metric_families)
    kinds = {name: (family.type, family.unit) for name, family in found.items()}
    assert kinds["edge_sel_energy_joules"] == ("counter", "joules") and kinds["edge_sel_power_watts"] == (
        "gauge",
        "watts",
    )
    (energy,) = found["edge_sel_energy_joules"].samples
    assert energy.name == "edge_sel_energy_joules_total" and energy.value == pytest.approx(20)
    assert energy.labels == {"meter": "lamp", "source": "measured"}
    assert found["edge_sel_info"].samples[0].labels["run"] == 'a"b\\c\nd'
    assert len(found) == 12, "all there are"


def test_the_parser_of_the_older_format_reads_it_too(tmp_path):
    parser = pytest.importorskip("prometheus_client.parser")
    found = families(Bench(tmp_path), parser.text_string_to_metric_families)
    values = {sample.name: sample.value for family in found.values() for sample in family.samples}
    assert values["edge_sel_energy_joules_total"] == pytest.approx(20) and values["edge_sel_epoch"] == 1
