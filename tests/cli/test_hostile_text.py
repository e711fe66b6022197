"""Text that somebody else wrote never reaches the terminal as a command, nor a spreadsheet as a formula."""

import ast
import csv
import io
import json
from pathlib import Path

import pytest

import edge_sel.cli
from edge_sel.cli.show import plain_console, plain_table, print_result
from edge_sel.files import csv_line, write_table
from tests.cli.shell import PACK

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eneerg\r\n=1+1\x00"
CONTROLS = {*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e"} - {"\n"}
FORMULAS = ["=cmd|' /C calc'!A0", "@SUM(1+1)", "+1", "-1+2", " =1", "\t=1", "a\n=1+1", "\r=1", EVIL]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    from edge_sel.api.round import finetune

    out = tmp_path_factory.mktemp("text") / "run"
    given = {"threads": 1, "meter": "psutil", "profile": "cloud-vm", "plan": "closed_form,last2", "epochs": 1}
    return finetune(None, None, out=out, **given).summary


def places(value, way=()):
    """Of every string in it, keys aside."""
    if isinstance(value, str):
        yield way
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*way, key))


def spoiled(value, way):
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = EVIL
    return copy


def test_no_string_of_a_result_reaches_the_terminal_raw(result, capsys):
    """Those that are read by code rather than shown may be refused instead."""
    found = [way for way in places(result) if way[0] not in ("settings", "identity", "outputs")]
    shown = 0
    for way in found:
        try:
            print_result(spoiled(result, way))
        except (KeyError, ValueError):
            continue
        text = capsys.readouterr().out
        assert not CONTROLS & {*text}, way
        shown += "owned" in text
    assert shown > 5


def test_a_console_and_a_table_show_control_characters(capsys):
    console = plain_console()
    console.print(EVIL)
    console.print(plain_table(EVIL, [EVIL, "b"], [[EVIL, "[bold]x"]], left=(EVIL,), folded=(EVIL,)))
    text = capsys.readouterr().out
    assert not CONTROLS & {*text} and text.count("owned") >= 3 and "[bold]x" in text


def test_runs_shows_what_a_stranger_wrote_as_text(edge_sel, here, result):
    folder = here / "runs" / "a"
    folder.mkdir(parents=True)
    for way in (("plan",), ("stopped",), ("run",)):
        (folder / "run.json").write_text(json.dumps(spoiled(result, way)))
        shown = edge_sel("runs")
        assert shown.code == 0 and not CONTROLS & {*shown.out}
    (folder / "run.json").write_text(json.dumps({**result, "classes": [EVIL], "epochs": EVIL}))
    shown = edge_sel("runs")
    assert "damaged" in shown.out and not CONTROLS & {*shown.out}


@pytest.mark.parametrize("text", FORMULAS)
def test_no_spreadsheet_takes_a_cell_for_a_formula(text, tmp_path):
    write_table(tmp_path / "t.csv", [{text: text, "number": -1.5, "nothing": None}])
    for line in (csv_line([text, -1.5]), *(tmp_path / "t.csv").read_text().splitlines()):
        (row,) = csv.reader(io.StringIO(line))
        assert not CONTROLS & {*line} and "\n" not in line
        assert not row[0].lstrip(" '\"").startswith(("=", "+", "@")) or row[0].startswith("'")
    assert csv_line([text, -1.5]).endswith(",-1.5")


def test_predict_as_csv(edge_sel, here, digits_folder, run_with_classes):
    shown = edge_sel("predict", run_with_classes, digits_folder, "--csv")
    rows = list(csv.reader(io.StringIO(shown.out)))
    assert shown.code == 0 and len({len(row) for row in rows}) == 1
    cells = [cell for row in rows for cell in row]
    assert not any(cell.startswith(("=", "@", "+", "-")) for cell in cells) and not CONTROLS & {*shown.out}
    assert any(cell.startswith("'=cmd") for cell in cells)
    shown = edge_sel("predict", run_with_classes, digits_folder)
    assert shown.code == 0 and not CONTROLS & {*shown.out} and len(shown.out.splitlines()) == len(rows) - 1


@pytest.fixture
def run_with_classes(edge_sel, here, digits_folder):
    """A run whose model.onnx was given other names for its classes."""
    import onnx

    assert edge_sel("finetune", PACK, "--data", digits_folder, "--out", "run", "--plan", "ridge", "--json").code == 0
    model = onnx.load(here / "run" / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == "classes":
            entry.value = json.dumps([f"{FORMULAS[n % len(FORMULAS)]}{n}" for n in range(10)])
    onnx.save(model, here / "other.onnx")
    return here / "other.onnx"


def test_nothing_else_prints():
    """``say``, a console of ours, JSON and CSV are all that there is."""
    for path in sorted(Path(edge_sel.cli.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in ("print", "click.secho", "RichConsole", "rich.print"):
                raise AssertionError(f"{path.name}:{node.lineno} calls {name}")
            if name == "click.echo" and path.name not in ("common.py", "main.py"):
                assert ast.unparse(node.args[0]).startswith("csv_line("), f"{path.name}:{node.lineno}"
