"""The page in a real Chromium: keys, clicks and taps; no error, no request to anywhere else, nothing that axe finds."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest

from edge_sel.watch.home import open_home

BROWSER = shutil.which("chromium")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")
def test_thirty_labels_by_keys_clicks_and_taps(watched, tmp_path, monkeypatch):
    pytest.importorskip("axe_playwright_python")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    import label_in_browser as tool

    home, truth = tmp_path / "home", tmp_path / "truth"
    shutil.copytree(watched / "home", home)
    names, opened = json.loads((watched / "CLASSES.json").read_text()), open_home(home)
    for image in opened.records.kept():
        place = truth / names[str(image.number)] / Path(image.file).name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(home / image.file, place)
    opened.close()
    given = argparse.Namespace(home=home, labels=30, pictures=tmp_path / "pictures", browser=BROWSER, truth=[truth])
    found = tool.run(given, [sys.executable, "-m", "edge_sel"])
    assert found["labels"] == 30 and not found["errors"] and not found["barriers"]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"label-desktop.png", "label-phone.png"}
    opened = open_home(home)
    assert len(opened.records.labels()) == 30
    opened.close()
