"""The metrics file is right at any time for whoever reads it, and a disk that fails stops nothing."""

from __future__ import annotations

import errno
import os
import re
import threading
from pathlib import Path

import pytest

from edge_sel.edge.outputs import openmetrics as metrics
from edge_sel.edge.outputs.openmetrics import Family, MetricsFile, to_text
from tests.edge.outputs.metrics import Bench
from tests.edge.sessions import no_meter


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
def test_any_name_of_a_run_is_escaped_in_its_label(tmp_path, run):
    bench = Bench(tmp_path, run=run)
    labels = next(key for key in bench.tell("started") if key.startswith("edge_sel_info"))
    run_label = re.match(r'edge_sel_info\{run="((?:[^"\\]|\\.)*)",plan="",version=', labels)
    assert run_label and re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), run_label[1]) == run


def test_a_name_that_is_no_utf_8_stops_nothing(tmp_path):
    bench = Bench(tmp_path, run=os.fsdecode(b"a\xff"))
    assert any("a?" in key for key in bench.tell("started")) and not bench.errors


def test_the_text_of_families_with_and_without_values():
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

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        bench.file({"event": "started"})
        bench.file({"event": "epoch", "epoch": 1})
    assert len(bench.errors) == 1 and "No space left" in bench.errors[0] and str(bench.path) in bench.errors[0]
    assert bench.tell("epoch", epoch=2)["edge_sel_epoch"] == 2, "there is space again"


@pytest.mark.parametrize("place", ["no/such/folder.prom", "folder"])
def test_a_place_that_cannot_be_written_is_told_once(tmp_path, place):
    (tmp_path / "folder").mkdir()
    errors: list[str] = []
    file = MetricsFile(tmp_path / place, no_meter(), "run", on_error=errors.append)
    file({"event": "started"})
    file({"event": "epoch", "epoch": 1})
    assert len(errors) == 1 and list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def families(bench: Bench, parse) -> dict[str, object]:
    bench.tell("started")
    bench.wait(2.0)
    bench.tell("governor", action="pressure", pressure=0.5)
    bench.tell("epoch", epoch=1, trained=16, validation_acc=0.5, active_rate=0.5)
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
