"""Which candidate is chosen, and what a file of another machine, a damaged one or none at all does: nothing."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.config.settings import resolve
from edge_sel.sysfs import board_model
from edge_sel.tuning import (
    REACH,
    TIE,
    Candidate,
    Cost,
    choose,
    machine,
    read_tuning,
    total_costs,
    tuned_settings,
    tuning_file,
    write_tuning,
)

HERE = {"processor": "AMD EPYC", "cores": 2, "onnxruntime": "1.31.1", "profile": "cloud-vm"}
PSUTIL = {"name": "psutil", "source": "modelled"}
COSTS = {
    "first": {Candidate(1, False, 32): Cost(2.0, 0.2, 0.2, 3), Candidate(2, False, 32): Cost(1.0, 0.1, 0.3, 3)},
    "last": {Candidate(1, False, 32): Cost(2.0, 0.2, 0.2, 3), Candidate(2, False, 32): Cost(4.0, 0.1, 0.3, 3)},
}

candidates = st.builds(
    Candidate, st.sampled_from([1, 2, 4, 6]), st.booleans(), st.sampled_from([4, 8, 16, 32, 64, 128])
)
some = st.dictionaries(candidates, st.floats(1e-6, 1e3), min_size=1)
decided = st.fixed_dictionaries(
    {}, optional={"threads": st.sampled_from([0, 1, 2]), "spinning": st.booleans(), "batch_size": st.just(32)}
)


def away(candidate):
    return abs(math.log2(candidate.batch_size / 32))


def plainness(candidate):
    return candidate.threads, candidate.spinning, away(candidate)


@given(some, decided)
def test_no_choice_is_dominated(totals, expected):
    found = choose(totals, 32, expected)
    fixed = {key: value for key, value in expected.items() if key != "batch_size"}
    able = {c: cost for c, cost in totals.items() if all(getattr(c, key) == value for key, value in fixed.items())}
    if "batch_size" in expected:
        nearest = min(map(away, totals))
        able = {c: cost for c, cost in able.items() if away(c) == nearest}
    else:
        able = {c: cost for c, cost in able.items() if 32 // REACH <= c.batch_size <= 32 * REACH}
    if not able:
        assert found is None
        return
    assert found in able
    assert able[found] <= (1 + TIE) * min(able.values())
    for other, cost in able.items():
        assert not (plainness(other) <= plainness(found) and cost < able[found]), other
        assert not (plainness(other) < plainness(found) and cost <= (1 + TIE) * min(able.values())), other


@given(st.lists(candidates, min_size=1, unique=True))
def test_ties_go_to_the_fewest_threads_then_to_sleep_then_to_the_usual_batch(tried):
    found = choose(dict.fromkeys(tried, 1.0), 32, {})
    able = [c for c in tried if 16 <= c.batch_size <= 64]
    assert (found and plainness(found)) == min(map(plainness, able), default=None)


def test_less_than_a_tie_decides_nothing_and_more_decides():
    one, two = Candidate(1, False, 32), Candidate(2, False, 32)
    assert choose({one: 1.0, two: 1.0 / (1 + 0.9 * TIE)}, 32, {}) == one
    assert choose({one: 1.0, two: 1.0 / (1 + 1.1 * TIE)}, 32, {}) == two


def test_the_costs_of_the_plans_that_will_run_are_summed():
    assert total_costs(COSTS) == {Candidate(1, False, 32): 4.0, Candidate(2, False, 32): 5.0}
    assert choose(total_costs(COSTS, ["first"]), 32, {}).threads == 2
    assert choose(total_costs(COSTS, ["bn", "first", "last"]), 32, {}).threads == 1
    assert total_costs(COSTS, ["bn"]) == {} == total_costs({})


def test_a_candidate_that_was_given_up_with_a_cheap_plan_may_win_by_a_dear_one():
    one, two = COSTS["first"]
    cheap = {one: Cost(1e-5, 0.1, 0.1, 3), two: Cost(9e-5, 0.1, 0.1, 1)}
    dear = {one: Cost(3.0, 0.1, 0.1, 3), two: Cost(2.0, 0.1, 0.1, 3)}
    assert choose(total_costs({"head": cheap, "full": dear}), 32, {}) == two
    assert total_costs({"head": {one: cheap[one]}, "full": dear}) == {one: pytest.approx(3.0, rel=1e-3)}


def test_without_joules_of_every_one_processor_time_decides():
    unknown = {**COSTS["last"], Candidate(1, False, 32): Cost(None, 0.2, 0.2, 3)}
    assert total_costs({**COSTS, "last": unknown}) == pytest.approx(
        {Candidate(1, False, 32): 0.4, Candidate(2, False, 32): 0.6}
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"threads": 2, "spinning": False, "batch_size": 32}),
        ({"threads": 1}, {"spinning": False, "batch_size": 32}),
        ({"threads": 3}, {}),
        ({"batch_size": 100}, {"threads": 2, "spinning": False}),
        ({"spinning": True}, {}),
    ],
)
def test_what_the_user_gave_is_not_tuned(flags, expected):
    assert tuned_settings(resolve(flags=flags), COSTS, "bn,first") == expected


def test_the_schedule_that_decides_counts_every_plan():
    assert tuned_settings(resolve(), COSTS, "auto")["threads"] == 1
    assert tuned_settings(resolve(), COSTS, "full") == {}


def test_the_file_says_what_was_measured(tmp_path):
    path = tuning_file("abc", "ort", {"XDG_CACHE_HOME": str(tmp_path)})
    assert path == tmp_path / "edge-sel" / "tuning" / "abc-ort.json"
    assert read_tuning(path, HERE) == (None, None)
    write_tuning(path, COSTS, HERE, PSUTIL)
    assert read_tuning(path, HERE) == (COSTS, None)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("cache", [{}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}])
def test_without_an_absolute_cache_it_is_the_homes(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning_file("abc", "ort", cache) == tmp_path / ".cache" / "edge-sel" / "tuning" / "abc-ort.json"


def test_without_a_home_or_a_look_into_it_nothing_is_remembered(monkeypatch, tmp_path):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    def closed(self, **how):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "home", unknown)
    assert tuning_file("abc", "ort", {}) is None
    monkeypatch.setattr(Path, "read_text", closed)
    assert read_tuning(tmp_path / "t.json", HERE) == (None, None)


def test_another_plan_is_added_and_another_meter_starts_afresh(tmp_path):
    path = tmp_path / "t.json"
    for plan in COSTS:
        write_tuning(path, {plan: COSTS[plan]}, HERE, PSUTIL)
    assert read_tuning(path, HERE) == (COSTS, None)
    write_tuning(path, {"last": COSTS["last"]}, HERE, {"name": "rapl", "source": "measured"})
    assert read_tuning(path, HERE)[0].keys() == {"last"}


@pytest.mark.parametrize("key", HERE)
def test_a_file_of_another_machine_is_not_used_and_says_why(key, tmp_path):
    path = tmp_path / "t.json"
    write_tuning(path, COSTS, {**HERE, key: "other"}, PSUTIL)
    costs, why = read_tuning(path, HERE)
    assert costs is None and f"{key} other, here {HERE[key]}" in why and str(path) in why and "\n" not in why


def change(body, *way, value):
    for key in way[:-1]:
        body = body[key]
    body[way[-1]] = value


@pytest.mark.parametrize(
    "way",
    [
        (("schema",), 2), (("machine",), None), (("plans",), [1]), (("plans", "first"), {}), (("plans", "first"), 3),
        (("plans", "first", 0), {}), (("plans", "first", 0, "threads"), 0), (("plans", "first", 0, "threads"), "1"),
        (("plans", "first", 0, "threads"), True), (("plans", "first", 0, "spinning"), 1),
        (("plans", "first", 0, "batch_size"), -3), (("plans", "first", 0, "time_s"), None),
        (("plans", "first", 0, "cpu_s"), "x"), (("plans", "first", 0, "energy_j"), math.inf),
        (("plans", "first", 0, "energy_j"), -1), (("plans", "first", 0, "rounds"), 0),
    ],
)  # fmt: skip
def test_a_damaged_file_is_not_used_and_says_why(way, tmp_path):
    path = tmp_path / "t.json"
    write_tuning(path, COSTS, HERE, PSUTIL)
    body = json.loads(path.read_text())
    change(body, *way[0], value=way[1])
    path.write_text(json.dumps(body))
    costs, why = read_tuning(path, HERE)
    if way == (("plans", "first"), {}):
        assert costs == {**COSTS, "first": {}} and tuned_settings(resolve(), costs, "first") == {}
    else:
        assert costs is None and str(path) in why and "\n" not in why


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_anything_else_is_not_used_and_may_be_replaced(content, tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes(content)
    costs, why = read_tuning(path, HERE)
    assert costs is None and str(path) in why and "\n" not in why
    write_tuning(path, COSTS, HERE, PSUTIL)
    assert read_tuning(path, HERE) == (COSTS, None)


def test_the_machine_is_named_by_its_processor_or_its_board(tmp_path):
    assert machine("p", 4, tmp_path)["processor"]
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 108.00\n")
    (tmp_path / "proc/device-tree/model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    name = machine("raspberry-pi-5", 4, tmp_path)
    assert name["processor"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert (name["cores"], name["profile"]) == (4, "raspberry-pi-5") and set(name) == set(HERE)
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: AMD EPYC\n")
    assert machine("p", 4, tmp_path)["processor"] == "AMD EPYC"


def test_the_machine_is_that_of_the_given_sysfs(tmp_path, monkeypatch):
    """A container may have no device tree of its own."""
    (tmp_path / "firmware/devicetree/base").mkdir(parents=True)
    (tmp_path / "firmware/devicetree/base/model").write_bytes(b"Radxa ROCK 5B\0")
    monkeypatch.setenv("EDGE_SEL_SYSFS_ROOT", str(tmp_path))
    assert machine("p", 4, tmp_path / "none")["processor"] == "Radxa ROCK 5B"
    assert board_model(tmp_path, tmp_path / "none") == "Radxa ROCK 5B"


def test_who_tunes_at_the_same_time_loses_nothing(tmp_path):
    """Each reads, adds its plan and writes; without a lock most of them were gone."""
    names = [f"plan{number}" for number in range(16)]
    with ThreadPoolExecutor(len(names)) as threads:
        for done in [
            threads.submit(write_tuning, tmp_path / "t.json", {n: COSTS["last"]}, HERE, PSUTIL) for n in names
        ]:
            done.result()
    known, _ = read_tuning(tmp_path / "t.json", HERE)
    assert set(known) == set(names) and [path.name for path in tmp_path.iterdir()] == ["t.json"]
