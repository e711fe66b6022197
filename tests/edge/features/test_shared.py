"""Features that outlive a run: found again, never wrong, never in the way."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

import edge_sel
from edge_sel.edge.features.shared import FILE, KnownFeatures, SharedFeatures
from tests.edge.sessions import digits, pack

BY = bytes(range(32))
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 2**63, (40, 2)).astype(np.uint64)
ROWS = RNG.standard_normal((40, 3, 5)).astype(np.float16)
EVERY, PLAIN = np.arange(40), np.zeros(40, bool)


@pytest.fixture
def store(tmp_path):
    made = SharedFeatures(tmp_path / "features", 8)
    yield made
    made.close()


def known(store, by=BY, kind=np.float16):
    return KnownFeatures(store, by, IMAGES, kind)


def test_what_was_written_is_found_by_whoever_opens_it_next(store):
    known(store).write(EVERY[:30], PLAIN[:30], ROWS[:30])
    store.close()
    again = SharedFeatures(store.folder, 8)
    rows, found = known(again).read(EVERY, PLAIN, (3, 5))
    assert found.tolist() == [True] * 30 + [False] * 10
    np.testing.assert_array_equal(rows[:30], ROWS[:30])
    assert again.as_dict() == {"folder": str(store.folder), "found": 30, "added": 0, "stopped": None}
    assert store.folder.stat().st_mode & 0o777 == 0o700 and (store.folder / FILE).stat().st_mode & 0o777 == 0o600


def test_other_images_weights_numbers_and_mirror_images_are_others(store):
    known(store).write(EVERY, PLAIN, ROWS)
    for other in (
        known(store, BY[::-1]),
        known(store, kind=np.float32),
        KnownFeatures(store, BY, IMAGES + np.uint64(1), np.float16),
    ):
        assert not other.read(EVERY, PLAIN, (3, 5))[1].any()
    assert not known(store).read(EVERY, ~PLAIN, (3, 5))[1].any()
    assert not known(store).read(EVERY, PLAIN, (3, 6))[1].any(), "rows of another size are not taken for these"


@pytest.mark.parametrize("what", ["row", "hash"])
def test_a_damaged_record_is_computed_anew(what, store):
    known(store).write(EVERY, PLAIN, ROWS)
    with sqlite3.connect(store.folder / FILE) as file:
        file.execute(f"UPDATE features SET {what} = zeroblob(length({what})) WHERE rowid = 7")
    file.close()
    found = known(store).read(EVERY, PLAIN, (3, 5))[1]
    assert found.sum() == 39
    known(store).write(EVERY[~found], PLAIN[~found], ROWS[~found])
    assert known(store).read(EVERY, PLAIN, (3, 5))[1].all()


@pytest.mark.parametrize("content", [b"", b"not a database" * 100, b"SQLite format 3\0" + 2000 * b"x"])
def test_a_file_that_is_no_database_is_replaced(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    store = SharedFeatures(tmp_path, 8)
    known(store).write(EVERY, PLAIN, ROWS)
    assert known(store).read(EVERY, PLAIN, (3, 5))[1].all() and not store.stopped


@pytest.mark.parametrize("at", range(0, 20_000, 1700))
def test_a_damaged_file_never_gives_a_wrong_row(at, tmp_path):
    store = SharedFeatures(tmp_path, 8)
    known(store).write(EVERY, PLAIN, ROWS)
    store.close()
    content = bytearray((tmp_path / FILE).read_bytes())
    at %= len(content)
    content[at : at + 600] = RNG.bytes(len(content[at : at + 600]))
    (tmp_path / FILE).write_bytes(content)
    store = SharedFeatures(tmp_path, 8)
    rows, found = known(store).read(EVERY, PLAIN, (3, 5))
    np.testing.assert_array_equal(rows[found], ROWS[found])
    known(store).write(EVERY, PLAIN, ROWS)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("dear")
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / FILE).symlink_to(tmp_path / "mine")
    store = SharedFeatures(tmp_path / "features", 8)
    known(store).write(EVERY, PLAIN, ROWS)
    assert "link" in store.stopped and (tmp_path / "mine").read_text() == "dear"


@pytest.mark.parametrize("there", ["a file", "a folder", "a pipe"])
def test_where_it_cannot_be_made_there_is_none(there, tmp_path):
    folder = tmp_path / "features"
    if there == "a file":
        folder.write_text("x")
    else:
        folder.mkdir()
        (folder / FILE).mkdir() if there == "a folder" else os.mkfifo(folder / FILE)
    store = SharedFeatures(folder, 8)
    known(store).write(EVERY, PLAIN, ROWS)
    assert store.stopped and not known(store).read(EVERY, PLAIN, (3, 5))[1].any()


def test_a_full_disk_ends_it_and_nothing_else(store):
    store._ask("PRAGMA max_page_count = 8")  # as SQLite sees it: "database or disk is full"
    many = np.zeros((40, 3, 500), np.float16)
    known(store).write(EVERY, PLAIN, many)
    assert "full" in store.stopped
    known(store).write(EVERY, PLAIN, many)
    assert not known(store).read(EVERY, PLAIN, (3, 500))[1].any()


def test_the_least_recently_used_go_first(tmp_path):
    """Rows of 128 kB; 8 fit into 1 MB."""
    large = RNG.standard_normal((40, 64, 1024)).astype(np.float16)
    store = SharedFeatures(tmp_path, 1)
    known(store).write(EVERY[:6], PLAIN[:6], large[:6])
    store.close()
    store = SharedFeatures(tmp_path, 1)
    known(store).read(EVERY[:2], PLAIN[:2], (64, 1024))  # used again
    known(store).write(EVERY[6:9], PLAIN[6:9], large[6:9])
    found = known(store).read(EVERY, PLAIN, (64, 1024))[1]
    assert found[[0, 1, 6, 7, 8]].all() and 5 <= found.sum() <= 7
    assert (tmp_path / FILE).stat().st_size < 1.5 * 2**20


WRITER = """
import sys
from pathlib import Path
import numpy as np
from edge_sel.edge.features.shared import KnownFeatures, SharedFeatures
store = SharedFeatures(Path(sys.argv[1]), 8)
images = np.arange(400, dtype=np.uint64).reshape(200, 2)
known = KnownFeatures(store, bytes(32), images, np.float16)
for row in range(200):
    part = np.array([(row * int(sys.argv[2])) % 200])
    rows, found = known.read(part, part < 0, (4,))
    assert not found[0] or (rows == float(part[0])).all()
    known.write(part, part < 0, np.full((1, 4), part[0], np.float16))
assert not store.stopped, store.stopped
"""


def test_two_processes_may_share_it(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), step]) for step in ("1", "7")]
    assert [process.wait(100) for process in running] == [0, 0]
    store = SharedFeatures(tmp_path, 8)
    images = np.arange(400, dtype=np.uint64).reshape(200, 2)
    rows, found = KnownFeatures(store, bytes(32), images, np.float16).read(np.arange(200), np.zeros(200, bool), (4,))
    assert found.all() and (rows == np.arange(200)[:, None]).all()


ASKED = {"threads": 1, "engine": "ort", "device": "cpu", "backbone_precision": "fp32", "keep_duplicates": True}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("plan", ["ridge", "closed_form", "bn,last-c25"])
def test_a_run_ends_the_same_with_and_without_it(plan, tmp_path):
    asked = {**ASKED, "plan": plan, "epochs": 1}
    without = edge_sel.train_round(pack(), digits(120), **asked)
    made = [edge_sel.train_round(pack(), digits(120), feature_store=str(tmp_path), **asked) for _ in range(2)]
    for each in made:
        assert all(np.array_equal(each.weights[name], value) for name, value in without.weights.items())
        assert each.summary["evidence"] == without.summary["evidence"]
    first, second = (each.summary["feature_store"] for each in made)
    assert first["found"] == 0 and first["added"] > 0 and second["found"] >= first["added"] > second["added"]


def test_a_second_run_with_twenty_images_more_computes_twenty(tmp_path):
    images = digits(400)
    asked = {**ASKED, "plan": "ridge", "feature_store": str(tmp_path)}
    edge_sel.train_round(pack(), images.subset(np.arange(380)), **asked)
    again = edge_sel.train_round(pack(), images, **asked).summary
    assert again["feature_store"] == {"folder": str(tmp_path), "found": 380, "added": 20, "stopped": None}
    alone = edge_sel.train_round(pack(), images, **{**asked, "feature_store": "off"}).summary
    assert again["epochs"][0]["executed_flops_t"] < 0.3 * alone["epochs"][0]["executed_flops_t"]
    assert "feature_store" not in alone


def test_who_names_a_folder_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "a file").write_text("x")
    messages = []
    asked = {**ASKED, "plan": "ridge", "feature_store": str(tmp_path / "a file"), "warn": messages.append}
    assert edge_sel.train_round(pack(), digits(120), **asked).done
    assert len(messages) == 1 and "no features were kept" in messages[0] and "a file" in messages[0]


def test_in_python_nothing_is_written_unless_asked_for():
    made = edge_sel.train_round(pack(), digits(120), **ASKED, plan="ridge")
    assert "feature_store" not in made.summary
