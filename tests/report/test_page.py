"""A report of whatever the folder of a run holds."""

import json
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.errors import SetupError, UsageError
from edge_sel.report.comparisons import pareto
from edge_sel.report.hardness import Thumbnails
from edge_sel.report.page import write_report
from edge_sel.report.read import read_records
from tests.report.conftest import NOW, Page

QUESTIONS = ["Did it work?", "Where did the joules go?", "Who was hard?", "What changed?"]
UNKNOWN = "This part cannot be read"
LARGEST = 1_500_000


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    """The file of its page, charts and all."""
    out = tmp_path_factory.mktemp("whole") / "report.html"
    write_report(out, [finished], now=NOW)
    return out


@pytest.fixture(scope="module")
def page(whole):
    return Page(whole.read_text(encoding="utf-8"))


def test_it_answers_the_four_questions_with_the_figures_of_run_json(finished, page):
    result = json.loads((finished / "run.json").read_text())
    assert [text for text in page.texts if text in QUESTIONS] == QUESTIONS and UNKNOWN not in page.text
    accuracy = result["accuracy"]
    assert f"{100 * accuracy['before']:.1f} % → {100 * accuracy['after']:.1f} %" in page.text
    assert "The new model ships" in page.text and result["evidence"]["why"] in page.text
    assert "modelled by psutil" in page.text and "forecast, not measured" in page.text
    assert "built-in (digits.edgepack)" in page.text and result["pack"] not in page.text
    for name in ("head.weight", "deep_head.weight", "closed_form", "last-c25", "evaluate", "embarrassment"):
        assert name in page.text


def test_it_asks_nobody_for_anything_and_runs_nothing(whole, page):
    html = whole.read_text(encoding="utf-8")
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    addresses = [
        a[key] for _, a in page.elements for key in ("src", "href", "xlink:href", "action", "data") if a.get(key)
    ]
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in addresses)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_every_chart_has_its_table_its_words_and_ids_of_its_own(page):
    charts = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(charts) >= 7 == len([c for c in charts[:7] if c["aria-label"]])
    assert len(page.all("svg")) == len(charts) == len(page.all("details"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    tables = page.all("table")
    assert len(tables) > len(charts) and len(page.all("caption")) == len(tables)
    colours = {value for _, a in page.elements for value in re.findall(r"#[0-9a-f]{6}", a.get("style") or "")}
    assert colours <= {"#000000", "#ffffff"}, "a colour that does not follow light and dark"


def test_the_hardest_images_are_shown_or_named(page):
    assert len(page.all("img")) == 48 and all(image["alt"] == "" for image in page.all("img"))


@pytest.mark.parametrize("named", [True, False])
def test_only_images_in_the_folder_that_the_user_names_are_shown(named, spoiled, report, tmp_path, sketched):
    """The run says that its images were in the folder of all files."""
    from PIL import Image

    (tmp_path / "photos" / "a").mkdir(parents=True)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "photos" / "a" / "good.png")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "secret.png")
    (tmp_path / "photos" / "a" / "bad.png").write_bytes(b"\x89PNG nothing")

    def change(result):
        names = ["a/good.png", "../secret.png", "a/bad.png", "a/gone.png", "/etc/hostname"]
        hardest = [{"path": name, "label": "a", "loss": 1.0, "loss_before": 2.0, "predicted": "b"} for name in names]
        hardest.append({"path": str(tmp_path / "secret.png").lstrip("/"), "label": "a", "loss": 1.0})
        return {**result, "source": "/", "hardest": {"validation": hardest, "training": []}}

    page = report(spoiled(change=change), images=tmp_path / "photos" if named else None)
    assert len(page.all("img")) == named and "a/gone.png" in page.text and "/etc/hostname" in page.text


def test_a_run_that_still_goes_on_or_was_killed(spoiled, report, sketched):
    page = report(spoiled(change=lambda result: None))
    assert "Not finished" in page.text and "--resume" in page.text and UNKNOWN not in page.text
    assert "closed_form" in page.text and "Joules by epoch" in page.text


@pytest.mark.parametrize("left", [["journal.jsonl"], ["events.jsonl", "journal.jsonl"], ["run.json"]])
def test_little_is_left_of_it(spoiled, report, sketched, left):
    folder = spoiled()
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    page = report(folder)
    assert [text for text in page.texts if text in QUESTIONS] == QUESTIONS


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', "null", "\0\xff"])
def test_damaged_files(spoiled, report, content):
    folder = spoiled()
    for path in folder.iterdir():
        path.write_text(content)
    page = report(folder)
    assert "The result cannot be read" in page.text


def test_rows_of_power_at_the_same_millisecond(spoiled, report, sketched):
    """The first is at 0.000 where a run begins at once."""
    folder = spoiled()
    rows = ["seconds,total_j,temp_c,phase", "0.0,0.1,,other", "0.1,0.2,,evaluate", "0.1,0.3,,evaluate", "0.2,0.4,,load"]
    (folder / "power.csv").write_text("\n".join(rows) + "\n")
    page = report(folder)
    assert UNKNOWN not in page.text and "Watts and degrees over time" in page.text


def test_without_joules(spoiled, report, sketched):
    def change(result):
        result["energy"] |= {"total_j": None, "net_j": None, "source": "unavailable", "phases": {}, "why": "unplugged"}
        result["dense"]["energy_j"] = None
        result["epochs"] = [{**epoch, "energy_j": None, "phases": {}} for epoch in result["epochs"]]
        return result

    folder = spoiled(change=change)
    (folder / "power.csv").unlink()
    page = report(folder)
    assert "unavailable" in page.text and "unplugged" in page.text and UNKNOWN not in page.text
    assert "Validation accuracy over seconds" in page.text


def of_classes(result, count):
    names = [f"class {number}" for number in range(count)]
    figures = {name: {"accuracy": 0.5, "embarrassment": 1.0 + number / count, "confidence": 0.0}
               for number, name in enumerate(names)}  # fmt: skip
    for when in ("before", "after"):
        for part in result[when].values():
            part["classes"] = figures
    cells = [[number, (number * 7) % count, 1] for number in range(count)]
    return {**result, "classes": names, "confusion": {"before": cells, "after": cells}}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("count", [2, 1000])
def test_two_classes_and_a_thousand(spoiled, report, tmp_path, request, count):
    if count == 2:
        request.getfixturevalue("sketched")
    page = report(spoiled(change=lambda result: of_classes(result, count)))
    assert UNKNOWN not in page.text and f"class {count - 1}" in page.text
    assert (tmp_path / "report.html").stat().st_size < LARGEST


def keys_of(result):
    return [
        *result,
        *(f"{outer}.{key}" for outer in ("accuracy", "energy", "evidence", "images") for key in result[outer]),
    ]


@pytest.mark.parametrize("apart", [48, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every one"])
def test_a_run_of_another_version_lacks_any_of_its_keys(finished, spoiled, report, request, apart):
    if apart > 1:
        request.getfixturevalue("sketched")
    result = json.loads((finished / "run.json").read_text())
    for number, key in enumerate(keys_of(result)[::apart]):
        outer, _, inner = key.rpartition(".")
        less = json.loads(json.dumps(result))
        del (less[outer] if outer else less)[inner]
        folder = spoiled(f"run {number}", lambda _, less=less: less)
        assert [t for t in report(folder).texts if t in QUESTIONS] == QUESTIONS, key
        shutil.rmtree(folder)


@pytest.mark.filterwarnings("error")
def test_names_that_are_markup_or_of_characters_that_the_charts_font_lacks(spoiled, report):
    mark = '"><script>alert(1)</script><!--'

    def change(result):
        classes = [mark, "日本 語", "עברית"]
        return {**of_classes(result, 3), "classes": classes, "source": mark, "plan": mark, "pack": mark}

    page = report(spoiled("<b>run</b> & 'co'", change))
    assert not page.all("script") and not page.all("b") and mark in page.text and "<b>run</b> & 'co'" in page.text
    assert page.text.count("日本 語") > 2 and page.text.count("עברית") > 2


def test_several_runs_side_by_side(spoiled, report, sketched):
    def change(result):
        result["settings"]["epochs"] = {"value": 9, "origin": "flag"}
        result["accuracy"]["after"], result["energy"]["total_j"] = 0.5, 1e4
        return {**result, "shipped": False}

    page = report(spoiled("first"), spoiled("second", change))
    assert (
        "2 runs side by side" in page.text
        and "Settings in which they differ setting first second epochs 1 9" in page.text
    )
    assert "1 of 2 runs are on the Pareto front: first" in page.text
    rows = [attributes for attributes in page.all("tr") if attributes.get("class") == "marked"]
    assert len(rows) == 1


def test_fifty_runs_stay_small(spoiled, report, tmp_path, finished):
    for number in range(50):
        folder = tmp_path / "runs" / f"run {number}"
        folder.mkdir(parents=True)
        shutil.copy(finished / "run.json", folder)
    page = report(tmp_path / "runs")
    assert "50 runs" in page.text and "run 49" in page.text and "edge-sel report RUN" in page.text
    assert (tmp_path / "report.html").stat().st_size < LARGEST


def test_no_run_is_read_twice(finished):
    assert len(read_records([finished, finished.parent, finished])) == 1


def test_what_is_no_run_is_one_line(tmp_path, finished, sketched):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(UsageError):
            write_report(tmp_path / "report.html", [path], now=NOW)
    with pytest.raises(UsageError, match="no finished results"):
        write_report(tmp_path / "report.html", [finished], reference=tmp_path / "empty", now=NOW)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("kind", ["text", "folder", "link", "empty"])
def test_what_is_no_report_is_not_replaced(tmp_path, finished, kind):
    out = tmp_path / "mine.html"
    if kind == "folder":
        out.mkdir()
    elif kind == "link":
        (tmp_path / "target.html").write_text("precious")
        out.symlink_to(tmp_path / "target.html")
    else:
        out.write_text("precious" if kind == "text" else "")
    with pytest.raises(UsageError, match="not a report"):
        write_report(out, [finished], now=NOW)
    assert kind == "folder" or out.read_text() == ("" if kind == "empty" else "precious")


def test_an_earlier_report_is_replaced_and_the_same_run_makes_the_same_bytes(tmp_path, finished, whole):
    out = tmp_path / "report.html"
    out.write_bytes(whole.read_bytes() + b"<!-- an earlier one -->")
    write_report(out, [finished], now=NOW)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_it_says_what_to_install(tmp_path, finished, monkeypatch, missing):
    import sys

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SetupError, match=rf"a report needs {missing}.*edge-sel\[report\]"):
        write_report(tmp_path / "report.html", [finished], now=NOW)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_nothing_is_better_and_no_dearer_than_what_is_on_the_front(points):
    front = pareto(points)
    for number in front:
        cost, gain = points[number]
        assert not any((c <= cost and g > gain) or (c < cost and g >= gain) for c, g in points)
    assert {max(g for _, g in points)} <= {points[number][1] for number in front}
    assert [points[n][0] for n in front] == sorted(points[n][0] for n in front)


def test_thumbnails_end_where_the_page_would_grow_too_large(monkeypatch):
    monkeypatch.setattr("edge_sel.report.hardness.MOST_PICTURES", 2)
    from edge_sel.data.builtin import RELIT, load_relit

    thumbnails = Thumbnails(None)
    found = [thumbnails.uri(RELIT, name) for name in load_relit("field").ids[:4]]
    assert [bool(uri) for uri in found] == [True, True, False, False]


def test_the_page_parser_of_these_tests_sees_what_is_open():
    with pytest.raises(AssertionError):
        Page("<p><b></p>")
