"""The site builds, its links lead somewhere, it asks nothing of a network; its lists are those of the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from edge_sel import errors
from edge_sel.edge.outputs.session_folder import FILES
from tests.edge.sessions import digits, session
from tools.doc_commands import ROOT

pytest.importorskip("sphinx", reason="the site needs edge-sel[docs]")

DOCS, EDGE = ROOT / "docs", ROOT / "edge_sel"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "deploy" / "README.md", *sorted(DOCS.rglob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. It takes half a minute; which files the links name is tested without it. Sphinx warns of links between pages that lead nowhere, and -W makes these errors."""
    out = tmp_path_factory.mktemp("site")
    given = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-d", str(out / "doctrees")]
    result = subprocess.run([*given, str(DOCS), str(out / "html")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out / "html"


class Page(HTMLParser):
    """The links, the anchors and what is loaded of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "link") and (source := given.get("src") or given.get("href")):
            self.loads.append(source)


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere_and_no_link_is_dead(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 30
    dead = []
    for path, page in pages.items():
        assert not [source for source in page.loads if urlsplit(source).scheme or source.startswith("//")], path
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else None
            if not target.exists() or (parts.fragment and anchors is not None and parts.fragment not in anchors | {""}):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert not dead, "\n".join(dead)


@pytest.mark.slow
def test_stylesheets_load_nothing_from_elsewhere(site):
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text(encoding="utf-8")), path


def headings(page: Path) -> set[str]:
    """What a link may name behind ``#``, as GitHub and MyST make it of a heading."""
    lines = [line.lstrip("#").strip() for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_name_files_and_headings_that_exist(page):
    dead = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if urlsplit(link).scheme:
            continue
        if not target.exists() or (heading and target.suffix == ".md" and heading not in headings(target)):
            dead.append(link)
    assert not dead


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120


def emitted() -> set[str]:
    """The names of all events in the code: ``emit("name")``, ``notices.append(("name", …))``, ``{"event": "name"}``."""
    found = {"started", "resumed", "unlocked"}  # chosen by a condition; yielded
    for path in [
        path for room in ("edge", "api", "power", "watch", "web", "cli") for path in (EDGE / room).rglob("*.py")
    ]:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and node.args:
                called, first = ast.unparse(node.func), node.args[0]
                if called.endswith("notices.append") and isinstance(first, ast.Tuple):
                    first = first.elts[0]
                elif called.rpartition(".")[2].strip("_") != "emit":
                    continue
                found |= {first.value} if isinstance(first, ast.Constant) else set()
        found |= set(re.findall(r'"event": "(\w+)"', text))
    return found


def test_events_are_those_of_the_code():
    text = (DOCS / "reference" / "events.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed | {"step", "tuned", "tuning_ignored", "waiting", "meter_lost"} == emitted()


def test_exit_statuses_are_those_of_the_code():
    text = (DOCS / "reference" / "exit_status.md").read_text(encoding="utf-8")
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EdgeSelError)]
    assert listed == {0, 1, errors.EXIT_INTERRUPTED, *(kind.exit_code for kind in kinds)}


def test_files_of_a_run_are_described(tmp_path):
    text = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    out = tmp_path / "run"
    result = session(out, images=digits(120)).run()
    written = {path.name for path in out.iterdir()} | set(FILES)
    assert not [name for name in written if f"`{name}" not in text]
    keys = set(result)
    assert not [key for key in keys if f"`{key}`" not in text]
    columns = (out / "history.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    common = {re.sub(r"^(E|C|acc)_\d$", r"\1_CLASS", name) for name in columns}
    assert not [name for name in common if f"`{name}`" not in text]
