"""Label images through the page in a real browser: seconds per label, what refitting takes, pictures of the page.

    python tools/label_in_browser.py --home HOME --truth FOLDER [--labels 100] [--pictures DIR] [--browser PATH]

HOME is of `edge-sel watch`; the class of an image is the folder below FOLDER that holds a file with the same content.
It starts `edge-sel label` and a Chromium (`--browser`, else the one on the PATH), answers by keys, by clicks and, on a
screen like a phone's, by taps. axe looks whether the page can be used by everybody. Needs the extras dev and web.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1100, "height": 900}}


def main() -> None:
    """Answer, measure, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--truth", type=Path, nargs="+", required=True)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--browser", default=shutil.which("chromium"))
    given = parser.parse_args()
    print(json.dumps(run(given, [sys.executable, "-m", "edge_sel"])))


def run(given: argparse.Namespace, program: list[str]) -> dict[str, Any]:
    """Start the page, label, and tell what it took."""
    truth = {
        hashlib.sha256(path.read_bytes()).hexdigest(): path.parent.name
        for root in given.truth for path in root.rglob("*") if path.is_file()
    }  # fmt: skip
    command = [*program, "label", "--home", str(given.home), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            ready = json.loads(server.stdout.readline())
            return answer_all(ready["address"], given, truth)
        finally:
            server.terminate()


def answer_all(address: str, given: argparse.Namespace, truth: dict[str, str]) -> dict[str, Any]:
    """Label as many as were asked for, a third each by keys, clicks and taps."""
    from playwright.sync_api import sync_playwright

    taken: dict[str, list[float]] = {"key": [], "click": [], "tap": []}
    pictures = given.pictures
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=given.browser, args=["--no-sandbox"])
        errors: list[str] = []
        barriers: list[str] = []
        for name, screen, scheme in (("desktop", DESKTOP, "light"), ("phone", PHONE, "dark")):
            context = browser.new_context(**screen, color_scheme=scheme)
            page = context.new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("requestfailed", lambda request: errors.append(request.url))
            page.on("request", lambda request: request.url.startswith(address) or errors.append(request.url))
            page.goto(address)
            wait_until(page, lambda page=page: "label" in page.inner_text("#count"))
            ways = ("tap",) if name == "phone" else ("key", "click")
            count = given.labels // 3 if name == "phone" else given.labels - given.labels // 3
            for number in range(count):
                if not label_one(page, ways[number % len(ways)], given.home, truth, taken):
                    break
            if pictures:
                page.screenshot(path=str(pictures / f"label-{name}.png"), full_page=True)
            context.close()
            barriers += barriers_of(browser, {**screen, "color_scheme": scheme}, address)
        browser.close()
    every = [seconds for part in taken.values() for seconds in part]
    return {
        "labels": len(every), "seconds_per_label": round(median(every), 3) if every else None,
        "worst_s": round(max(every), 3) if every else None, "errors": errors,
        "barriers": barriers,
        **{f"{way}_s": round(median(part), 3) for way, part in taken.items() if part},
    }  # fmt: skip


def barriers_of(browser: Any, screen: dict[str, Any], address: str) -> list[str]:
    """What axe finds against WCAG 2.2 A and AA; in a context of its own, as it runs a script in the page."""
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(**screen, bypass_csp=True)
    page = context.new_page()
    page.goto(address)
    wait_until(page, lambda: "label" in page.inner_text("#count"))
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    found = Axe().run(page, options=rules).response
    context.close()
    if not found["passes"]:
        raise RuntimeError("axe looked at nothing")
    return [f"{one['id']}: {one['help']} {[node['target'] for node in one['nodes']]}" for one in found["violations"]]


def label_one(page: Any, way: str, home: Path, truth: dict[str, str], taken: dict[str, list[float]]) -> bool:
    """Answer what is shown; False if nothing is."""
    source = page.get_attribute("#picture", "src")
    if not source:
        return False
    number = int(source.rpartition("/")[2])
    with sqlite3.connect(home / "watch.sqlite") as records:
        (file,) = records.execute("SELECT file FROM images WHERE id = ?", (number,)).fetchone()
    name = truth[hashlib.sha256((home / file).read_bytes()).hexdigest()]
    buttons = page.query_selector_all("#classes button")
    place = next((at for at, button in enumerate(buttons) if button.evaluate("b => b.firstChild.data") == name), None)
    began_s = time.perf_counter()
    if place is None:
        page.fill("#name", name)
        page.press("#name", "Enter")
    elif way == "key" and (key := buttons[place].get_attribute("aria-keyshortcuts")):
        page.keyboard.press(key)
    elif way == "tap":
        buttons[place].tap()
    else:
        buttons[place].click()
    wait_until(page, lambda: page.get_attribute("#picture", "src") != source)
    taken[way].append(time.perf_counter() - began_s)
    return True


def wait_until(page: Any, reached: Callable[[], bool]) -> None:
    """Look again and again, as the page's policy allows no expression that is evaluated in it."""
    deadline_s = time.monotonic() + 30
    while page.query_selector("body[aria-busy]") or not reached():
        if time.monotonic() > deadline_s:
            raise TimeoutError(page.inner_text("body"))
        page.wait_for_timeout(5)


if __name__ == "__main__":
    main()
