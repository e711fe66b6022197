"""What arrives is seen once and counted once, whatever it is, and however the watcher is cut."""

from __future__ import annotations

import errno
import io
import sqlite3

import numpy as np
import pytest
from PIL import Image

from edge_sel.data.builtin import load_relit
from edge_sel.errors import BadInputError, UsageError
from edge_sel.files import csv_line
from edge_sel.watch import watcher as watching
from edge_sel.watch.arrivals import FolderArrivals, FrameArrivals, split_frames
from edge_sel.watch.home import check_class_name, make_home, open_home
from edge_sel.watch.keeper import Keeper
from edge_sel.watch.records import FILE
from tests.watch.conftest import PACK, Clock, write_digits


def lines(home) -> list[tuple]:
    return list(home.records.lines())


def test_each_image_is_classified_written_and_counted_once(home, watch, tmp_path):
    write_digits(tmp_path / "camera", 30)
    write_digits(tmp_path / "camera" / "below", 10, 100, relit=False)
    watch(tmp_path / "camera")
    watch(tmp_path / "camera")
    counters = home.records.counters()
    assert len(lines(home)) == counters["images"] == 40
    assert counters["kept"] + counters.get("passed_over", 0) + counters.get("duplicate", 0) == 40
    assert all(
        line[3] in home.pack.manifest.model.classes and 0 <= line[4] <= 1 and line[5] >= 0 for line in lines(home)
    )
    for image in home.records.kept():
        assert home.image_file(image.file).is_file()


def test_a_file_that_changes_is_another_image(home, watch, tmp_path):
    (path, _), (other, _) = write_digits(tmp_path / "camera", 2)
    other.unlink()
    watch(tmp_path / "camera")
    Image.fromarray(load_relit("field").read(np.array([7]))[0]).save(path)
    watch(tmp_path / "camera")
    assert home.records.counters()["images"] == 2


def test_the_same_frame_for_hours_is_computed_once(home, watch, learner, tmp_path, monkeypatch):
    ((path, _),) = write_digits(tmp_path / "camera", 1)
    for number in range(50):
        (tmp_path / "camera" / f"again-{number}.png").write_bytes(path.read_bytes())
    computed = []
    features = learner.observer.features
    monkeypatch.setattr(learner.observer, "features", lambda pixels: computed.append(len(pixels)) or features(pixels))
    watch(tmp_path / "camera")
    assert home.records.counters()["repeated"] == 50 and len(home.records.kept()) <= 1
    assert sum(computed) == 1
    assert {line[3] for line in lines(home)} == {lines(home)[0][3]}


def test_frames_of_one_scene_are_kept_once(home, watch, tmp_path):
    rng, camera = np.random.default_rng(0), tmp_path / "camera"
    camera.mkdir()
    scene = load_relit("field").read(np.array([3]))[0].astype(float)
    for number in range(20):
        noisy = np.clip(scene + rng.normal(0, 2, scene.shape) + number % 3, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(camera / f"{number}.png")
    watch(camera)
    counters = home.records.counters()
    assert counters["kept"] == 1 and counters["duplicate"] + counters.get("passed_over", 0) == 19


def test_what_is_no_image_is_told_once_and_what_is_half_written_waits(home, watch, tmp_path):
    ((path, _),) = write_digits(tmp_path / "camera", 1)
    content = path.read_bytes()
    (tmp_path / "camera" / "half.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "camera" / "empty.jpg").write_bytes(b"")
    (tmp_path / "camera" / "notes.txt").write_text("no image")
    events: list[dict] = []
    watch(tmp_path / "camera", events)
    assert sorted(event["source"].rpartition("/")[2] for event in events if event["event"] == "unreadable") == [
        "empty.jpg", "half.png",
    ]  # fmt: skip
    watch(tmp_path / "camera", events)
    assert home.records.counters() | {"unreadable": 2, "images": 3} == home.records.counters()
    (tmp_path / "camera" / "half.png").write_bytes(content)
    watch(tmp_path / "camera", events)
    assert home.records.counters()["images"] == 4 and home.records.counters()["repeated"] == 1


def test_a_file_that_is_being_written_is_read_when_it_is_whole(home, learner, tmp_path):
    ((path, _),) = write_digits(tmp_path / "camera", 1)
    content, half = path.read_bytes(), path.with_name("half.png")
    half.write_bytes(content[:60])
    path.unlink()
    clock, ticks = Clock(), []

    def sleep(seconds: float) -> None:
        clock.now_s += seconds
        ticks.append(clock.now_s)
        if len(ticks) == 2:
            half.write_bytes(content)

    around = watching.Surroundings(clock, lambda: 1.0, should_stop=lambda: "signal" if len(ticks) > 30 else None)
    watcher = watching.Watcher(learner, watching.Options(learn=False), around, np.random.default_rng(0))
    arrivals = FolderArrivals(tmp_path / "camera", home.records, clock=clock, sleep=sleep, poll_s=0.5)
    arrivals._changes = lambda: (set() for _ in iter(lambda: sleep(0.5), 1))
    arrivals.why_polling = "a test"
    assert watcher.run(arrivals) == "signal"
    assert home.records.counters()["images"] == 1 and "unreadable" not in home.records.counters()


def test_what_vanishes_is_counted_and_links_to_nothing_do_no_harm(home, learner, tmp_path):
    files = write_digits(tmp_path / "camera", 3)
    (tmp_path / "camera" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    arrivals = FolderArrivals(tmp_path / "camera", home.records)
    found = [part for part in arrivals.once()]
    files[1][0].unlink()
    around = watching.Surroundings(Clock(), lambda: 1.0)
    watching.Watcher(learner, watching.Options(learn=False), around, np.random.default_rng(0)).run(found)
    assert home.records.counters()["images"] == 2 and home.records.counters()["vanished"] == 1


def test_the_home_inside_the_folder_is_not_watched(watch, home, tmp_path):
    write_digits(tmp_path, 3)
    watch(tmp_path)
    watch(tmp_path)
    assert home.records.counters()["images"] == 3


def test_room_is_made_for_new_images_and_what_is_labelled_stays(home, watch, tmp_path):
    write_digits(tmp_path / "camera", 30)
    watch(tmp_path / "camera")
    first = home.records.kept()[0]
    home.records.add_label(first.number, "3", "somebody", 1.0)
    write_digits(tmp_path / "camera", 60, 30)
    watch(tmp_path / "camera", keep=10)
    kept = home.records.kept()
    assert len(kept) <= 11 and first.number in {image.number for image in kept}
    on_disk = {str(path.relative_to(home.folder)) for path in (home.folder / "kept").iterdir()}
    assert on_disk == {image.file for image in kept}
    assert home.records.counters()["let_go"] >= 1 and len(home.records.labels()) == 1


def test_the_share_of_kept_images_follows_the_target(home, learner):
    rng = np.random.default_rng(0)
    keeper = Keeper(home, learner.observer, 0.1, 10**6, 1e6)
    pixels = np.zeros((16, 16, 3), np.uint8)
    units = rng.standard_normal((2000, learner.observer.width + 1)) / 14
    rates = {}
    for name, pressure in (("calm", 0.0), ("pressed", 1.0)):
        rates[name] = np.mean([keeper.wanted(unit, pixels, pressure) == "kept" for unit in units[300:]])
    assert rates["calm"] == pytest.approx(0.1, abs=0.03)
    assert rates["pressed"] < 0.5 * rates["calm"]


def test_a_full_disk_loses_no_line_and_is_told_once(home, watch, tmp_path, monkeypatch):
    write_digits(tmp_path / "camera", 5)
    real, tries, events = home.records.add, [], []

    def full(seen, counters):
        tries.append(1)
        if len(tries) < 4:
            raise sqlite3.OperationalError("database or disk is full")
        return real(seen, counters)

    monkeypatch.setattr(home.records, "add", full)
    watch(tmp_path / "camera", events)
    assert home.records.counters()["images"] == 5
    assert [event["why"] for event in events if event["event"] == "cannot_write"] == ["database or disk is full"]


def test_an_image_that_cannot_be_kept_is_counted_all_the_same(home, watch, tmp_path, monkeypatch):
    write_digits(tmp_path / "camera", 5)

    def full(path, content):
        from edge_sel.files import cannot_write

        raise cannot_write(path, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(watching, "write_durably", full)
    watch(tmp_path / "camera")
    assert home.records.counters()["not_kept"] >= 1 and not home.records.kept()
    assert home.records.counters()["images"] == 5


def jpeg(row: int) -> bytes:
    made = io.BytesIO()
    Image.fromarray(load_relit("field").read(np.array([row]))[0]).save(made, "JPEG")
    return made.getvalue()


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_frames_on_a_stream_are_cut_where_they_end(size):
    frames = [jpeg(row) for row in range(4)]

    class Slow(io.RawIOBase):
        left = b"noise" + b"".join(frames)

        def read(self, wanted=-1):
            part, self.left = self.left[:size], self.left[size:]
            return part

    assert list(split_frames(Slow())) == frames


def test_frames_are_watched_until_the_stream_ends(home, learner):
    around = watching.Surroundings(Clock(), lambda: 1.0)
    watcher = watching.Watcher(learner, watching.Options(learn=False), around, np.random.default_rng(0))
    frames = FrameArrivals(io.BytesIO(b"".join(jpeg(row) for row in range(5))))
    assert watcher.run(frames) == "done"
    assert home.records.counters()["images"] + frames.dropped == 5


def test_drift_is_seen_in_the_field_and_not_at_home(home, watch, tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "WINDOW", 60)
    write_digits(tmp_path / "clean", 80, relit=False)
    events: list[dict] = []
    watch(tmp_path / "clean", events)
    write_digits(tmp_path / "field", 80)
    watch(tmp_path / "field", events)
    seen = [event["seen"] for event in events if event["event"] == "drift"]
    assert seen == [False, True]


# Homes


def test_a_home_is_of_one_pack_and_of_one_version(home, tmp_path):
    make_home(home.folder, PACK)  # again changes nothing
    with pytest.raises(BadInputError, match="no home"):
        open_home(tmp_path / "elsewhere")
    other = tmp_path / "other.edgepack"
    home.pack.with_weights(home.pack.weights()).save(other)
    with pytest.raises(UsageError, match="another pack"):
        make_home(home.folder, other)
    (home.folder / "home.json").write_text('{"format": 9, "pack": "x"}')
    with pytest.raises(BadInputError, match="version 9"):
        open_home(home.folder)


@pytest.mark.parametrize("damage", ["noise", "cut", "empty page"])
def test_damaged_records_are_made_anew_from_the_folders(home, learner, watch, tmp_path, damage):
    from edge_sel.watch.labelling import collect_moved, settle

    files = dict(write_digits(tmp_path / "camera", 12))
    watch(tmp_path / "camera")
    for image in home.records.kept()[:5]:
        home.records.add_label(image.number, "4", "somebody", 1.0)
        settle(home, image.number, image.file)
    before = {image.file for image in home.records.kept()}
    home.close()
    path = home.folder / FILE
    content = path.read_bytes()
    path.write_bytes({"noise": b"\x00\x01" * 5000, "cut": content[: len(content) // 2],
                      "empty page": content[:4096] + bytes(4096) + content[8192:]}[damage])  # fmt: skip
    again = open_home(home.folder)
    assert "damaged" in again.restored and files
    collect_moved(again, learner.observer, Clock())
    assert {image.file for image in again.records.kept()} == before
    assert sorted(label.name for label in again.records.labels()) == ["4"] * 5
    assert list(home.folder.glob("*.damaged-1"))


@pytest.mark.parametrize(
    "name", ["", " ", "..", ".hidden", "a/b", "a\\b", "x" * 81, "a\nb\x1b", "<b>", "Thumbs.db", "ä" * 120]
)
def test_a_class_has_a_name_that_a_folder_can_have(name):
    with pytest.raises(UsageError):
        check_class_name(name)


def test_names_of_classes_lose_spaces_only():
    assert check_class_name("  Haus  am   See ") == "Haus am See" and csv_line(["x"])


def test_clocks_that_jump_change_what_people_see_and_nothing_else(home, learner, tmp_path):
    from edge_sel.cli.watch import _time

    write_digits(tmp_path / "camera", 6)
    jumps = iter([1e18, -5.0, 0.0, 1.7e9, float("inf"), 1.7e9, *[2.0] * 20])
    around = watching.Surroundings(Clock(), lambda: next(jumps))
    watcher = watching.Watcher(learner, watching.Options(rate=1.0, learn=False), around, np.random.default_rng(0))
    watcher.run(FolderArrivals(tmp_path / "camera", home.records).once())
    shown = [_time(line[2]) for line in home.records.lines()]
    assert (
        len(shown) == home.records.counters()["images"] == 6 and shown[0] == "" and shown[3] == "2023-11-14T22:13:20Z"
    )
