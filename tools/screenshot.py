"""Take pictures of a page as Chromium shows it, without a network: ``python tools/screenshot.py PAGE OUT.png``.

pip install playwright && apt install chromium
edge-sel finetune --out run --report
python tools/screenshot.py run/report.html docs/figures/report.png --height 722
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

VIEWS = {"desktop": 1200, "phone": 390}
"""Width in pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--view", choices=VIEWS, default="desktop")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--height", type=int, help="Of the picture; the whole page without it.")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    browser = os.environ.get("EDGE_SEL_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    viewport = {"width": VIEWS[arguments.view], "height": arguments.height or 900}
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        context = launched.new_context(
            offline=True, viewport=viewport, is_mobile=arguments.view == "phone",
            color_scheme="dark" if arguments.dark else "light",
        )  # fmt: skip
        page = context.new_page()
        page.goto(arguments.page.resolve().as_uri())
        page.screenshot(path=arguments.out, full_page=arguments.height is None)
        launched.close()


if __name__ == "__main__":
    main()
