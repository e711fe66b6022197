"""The report in a real browser without a network: what it asks for, how quickly it opens, who can read it.

Needs Chromium (`apt install chromium`) and ``pip install playwright axe-playwright-python``; skipped without.
"""

import os
import shutil

import pytest

from edge_sel.report.page import write_report
from tests.report.conftest import NOW
from tests.report.test_reference import write

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = os.environ.get("EDGE_SEL_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (EDGE_SEL_BROWSER names one)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    """One run beside a reference, and fifty runs."""
    root = tmp_path_factory.mktemp("pages")
    for system, energy_j in (("baseline", 100.0), ("sel-95", 40.0)):
        write(root / "reference", system, 0, energy_j, 0.8)
    write_report(root / "one.html", [finished], reference=root / "reference", now=NOW)
    for number in range(50):
        (root / "runs" / f"run {number}").mkdir(parents=True)
        for name in ("run.json", "events.jsonl", "power.csv"):
            shutil.copy(finished / name, root / "runs" / f"run {number}")
    write_report(root / "fifty.html", [root / "runs"], now=NOW)
    return {name: root / f"{name}.html" for name in ("one", "fifty")}


@pytest.fixture
def opened(browser, pages):
    """``opened(page, view)`` → the page, the addresses it asked for, and what it complained of."""
    contexts = []

    def go(name, view="desktop"):
        context = browser.new_context(offline=True, **VIEWS[view])
        contexts.append(context)
        page, asked, complaints = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(pages[name].as_uri())
        return page, asked, complaints

    yield go
    for context in contexts:
        context.close()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["one", "fifty"])
def test_it_asks_for_itself_alone(opened, pages, name, view):
    page, asked, complaints = opened(name, view)
    outside = [address for address in asked if not address.startswith("data:")]
    assert outside == [pages[name].as_uri()] and complaints == []
    assert page.locator("h1").inner_text()


@pytest.mark.parametrize("name", ["one", "fifty"])
def test_it_opens_in_under_a_second(opened, name):
    page, _, _ = opened(name)
    assert page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 1000


@pytest.mark.sampled(6)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["one", "fifty"])
def test_a_screen_reader_and_weak_eyes_can_use_it(opened, name, view):
    page, _, _ = opened(name, view)
    found = axe.Axe().run(page).response["violations"]
    assert [(rule["id"], [node["html"][:120] for node in rule["nodes"][:3]]) for rule in found] == []


@pytest.mark.parametrize("name", ["one", "fifty"])
def test_a_phone_scrolls_it_one_way_only(opened, name):
    page, _, _ = opened(name, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_text_in_charts_can_be_read_on_a_phone(opened):
    page, _, _ = opened("one", "phone")
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height).filter(h => h > 0)"
    )
    assert sizes and min(sizes) >= 6


def test_the_keyboard_reaches_and_opens_every_table(opened):
    page, _, _ = opened("one")
    tables = page.locator("summary").count()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = 0
    for _ in range(20 * tables):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            page.keyboard.press("Enter")
            reached += 1
        elif page.evaluate("document.activeElement === document.body"):
            break
    assert reached == tables == page.locator("details[open]").count()


def test_dark_is_dark_and_print_is_not(opened):
    page, _, _ = opened("one", "dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    text = "getComputedStyle(document.querySelector('svg text')).fill"
    assert page.evaluate(colour) == "rgb(20, 24, 29)" and page.evaluate(text) in (
        "rgb(232, 235, 238)",
        "rgb(167, 176, 187)",
    )
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')").strip() == "#000"
    assert len(page.pdf()) > 20_000
