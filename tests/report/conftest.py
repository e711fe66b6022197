"""One finished run with joules, for all tests of the room; copies of it are spoiled."""

import json
import shutil
from datetime import datetime
from html.parser import HTMLParser

import pytest

from edge_sel.api.round import finetune
from edge_sel.report.page import write_report
from tests.once import once

NOW = datetime(2026, 1, 2, 3, 4)
VOID = {"meta", "img", "link", "br", "hr", "input", "path", "use"}


class Page(HTMLParser):
    """What a page holds: its text, its elements with their attributes, and whether every element is closed."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    def run():
        out = tmp_path_factory.mktemp("report") / "finished"
        run_facts = {"threads": 1, "meter": "psutil", "profile": "cloud-vm"}
        finetune(None, None, out=out, plan="closed_form,full,last-c25", epochs=1, **run_facts)
        return out

    return once(tmp_path_factory, "run of the report", run)


@pytest.fixture
def spoiled(finished, tmp_path):
    """``spoiled(name, change)``: a copy of the run whose ``run.json`` is changed; None leaves it out."""

    def make(name="run", change=lambda result: result):
        folder = tmp_path / name
        shutil.copytree(finished, folder)
        path = folder / "run.json"
        result = change(json.loads(path.read_text()))
        path.unlink() if result is None else path.write_text(json.dumps(result))
        return folder

    return make


@pytest.fixture
def report(tmp_path):
    """``report(*runs, …)`` → the page."""

    def write(*runs, **how):
        out = tmp_path / "report.html"
        size = write_report(out, runs, now=NOW, **how)
        html = out.read_text(encoding="utf-8")
        assert size == out.stat().st_size
        return Page(html)

    return write
