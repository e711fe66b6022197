"""Files of a run that somebody else has written: each is read, or refused with its reason; none takes long."""

import json
import shutil
import zlib

import pytest

from edge_sel.edge.outputs.earlier import look_into, past_runs
from edge_sel.edge.outputs.logs import read_power
from edge_sel.edge.outputs.run_file import read_events, read_run_file
from edge_sel.edge.outputs.session_folder import damaged_outputs
from edge_sel.files import sha256_of
from edge_sel.schema import SchemaError
from tests.edge.sessions import digits, session

HUGE = 10**400


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "one"
    session(folder, images=digits(150), plan="closed_form,last2", epochs=1, gate="off", test=digits(40, "test")).run()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    folder = tmp_path / "runs" / "bad"
    shutil.copytree(finished, folder)
    shutil.copytree(finished, folder.with_name("good"))
    return folder


def test_a_run_of_ours_is_read_whole(finished):
    """Else a key would be written that no reader ever sees."""
    written = json.loads((finished / "run.json").read_text())
    assert read_run_file(finished / "run.json") == written
    kinds = {event["event"] for event in read_events(finished / "events.jsonl")}
    assert {"started", "evaluated", "stage_begun", "epoch", "finished"} <= kinds
    (epochs,) = [[e for e in read_events(finished / "events.jsonl") if e["event"] == "epoch"]]
    wanted = [
        {k: v for k, v in epoch.items() if k not in ("classes", "kept", "test_full")} for epoch in written["epochs"]
    ]
    assert [{k: v for k, v in e.items() if k not in ("event", "t_s", "kept")} for e in epochs] == wanted


def spoil(run, *path, value):
    content = json.loads((run / "run.json").read_text())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (run / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("energy", "total_j"), HUGE, "has a number of 401 digits"),
        (("accuracy", "before"), HUGE, "has a number of 401 digits"),
        (("time_s",), HUGE, "has a number of 401 digits"),
        (("energy", "total_j"), 1e300, "energy.total_j is 1e+300"),
        (("energy", "source"), "\x1b[2J", "energy.source is '\\x1b[2J'"),
        (("accuracy", "after"), float("nan"), "has the number NaN"),
        (("accuracy",), [1], "accuracy is [1], not an object"),
        (("epochs",), "xx", "epochs is 'xx', not a list"),
        (("epochs", 0, "plan"), 3, "epochs[0].plan is 3, not str"),
        (("outputs",), [1], "outputs is [1], not an object"),
        (("settings",), [1, 2], "settings is [1, 2], not an object"),
        (("classes",), [["a"]], "classes[0] is ['a'], not str"),
        (("confusion", "after"), [[0, 10**9, 1]], "confusion.after has a cell of no class"),
        (("confusion", "after"), [[0, 1]], "confusion.after has a cell of no class"),
        (("stopped",), None, "stopped is None, not str"),
        (("identity",), 7, "identity is 7, not an object"),
    ],
)  # fmt: skip
def test_one_bad_result_is_told_and_hides_no_other_run(path, value, expected, run):
    spoil(run, *path, value=value)
    with pytest.raises(SchemaError) as caught:
        read_run_file(run / "run.json")
    assert str(caught.value).startswith(expected)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    (run / "journal.jsonl").unlink()
    bad, good = past_runs(run.parent)
    assert (bad.verdict, good.verdict in ("shipped", "kept")) == ("damaged", True)
    assert bad.why.startswith(f"run.json: {expected}")


@pytest.mark.parametrize("missing", ["accuracy", "energy", "plan", "time_s", "shipped"])
def test_a_result_without_what_is_listed_is_told(missing, run):
    content = json.loads((run / "run.json").read_text())
    del content[missing]
    (run / "run.json").write_text(json.dumps(content))
    bad, _ = past_runs(run.parent)
    assert bad.verdict == "damaged" and bad.why == f"run.json has no {missing}"


def journal_line(entry):
    text = json.dumps(entry)
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'


JOURNAL = {
    "at": "step", "cuts": 0, "up_s": 1.0, "seconds": 1e6, "total_j": 1e6, "net_j": 1.0, "source": "measured",
    "uncertainty_j": 0.0, "forecast": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "spoilt",
    [{"up_s": HUGE}, {"total_j": HUGE}, {"source": "a friend"}, {"cuts": 10**18}, {"cuts": -1}, {"forecast": [1]},
     {"forecast": {"step_j": HUGE}}, {"at": 3}, {"seconds": "1"}],
    ids=lambda spoilt: next(iter(spoilt)),
)  # fmt: skip
def test_a_journal_whose_checksum_is_right_and_whose_numbers_are_not(spoilt, run):
    (run / "journal.jsonl").write_text(journal_line(JOURNAL))
    assert look_into(run).last_line["seconds"] == 1e6
    (run / "journal.jsonl").write_text(journal_line({**JOURNAL, **spoilt}))
    earlier = look_into(run)
    assert earlier.last_line is None and earlier.journal_damaged


def test_a_journal_that_is_nested_deeply(run):
    (run / "journal.jsonl").write_text("[" * 60_000 + "\n")
    assert look_into(run).journal_damaged


@pytest.mark.parametrize("cell", ["1" * 200_000, "1e999", "nan", '"' + "\n" * 9, "-1"])
def test_a_power_log_with_such_a_cell(cell, run):
    (run / "power.csv").write_text(f"seconds,total_j,temp_c,phase\n1,2,,train\n{cell},3,,train\n")
    assert [row.seconds for row in read_power(run / "power.csv")] == [1.0]


def test_events_that_are_not_as_they_should_be_are_left_out(run):
    lines = [
        {"t_s": 1.0, "event": "governor", "action": "pause", "limit": "max_temp"},
        {"t_s": HUGE, "event": "governor"}, {"t_s": -1, "event": "finished"}, {"t_s": 1.0, "event": ["x"]},
        {"t_s": 2.0, "event": "epoch", "epoch": "one"}, {"t_s": 3.0, "event": "unheard of", "more": [[]]}, [1], 3,
    ]  # fmt: skip
    (run / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n" + "[" * 60_000 + "\n{")
    assert read_events(run / "events.jsonl") == [lines[0], {"t_s": 3.0, "event": "unheard of"}]


def test_outputs_outside_of_the_folder_are_damaged_and_not_opened(run):
    good = sha256_of(run / "model.onnx")
    outputs = {"../good/model.onnx": good, "/dev/zero": "0", "model.onnx": good}
    assert damaged_outputs(run, {"outputs": outputs}) == ["../good/model.onnx", "/dev/zero"]
