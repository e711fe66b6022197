"""The field benchmark's own parts, and its short form from end to end."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from field import cells, report, results, systems  # noqa: E402
from field.measure import measured  # noqa: E402

from edge_sel.config.profiles import load_profile  # noqa: E402
from edge_sel.data.dataset import ImageSet  # noqa: E402
from edge_sel.data.folder import load_folder  # noqa: E402
from edge_sel.errors import UsageError  # noqa: E402


def row(system, shift, seed=0, accuracy=0.8, gross_j=100.0, **more):
    return {
        "part": "val", "shift": shift, "seed": seed, "system": system, "digest": "0", "threads": 1,
        "options": systems.options(system), "accuracy": accuracy, "cpu_s": gross_j / 10, "wall_s": gross_j / 10,
        "gross_j": gross_j, "net_j": gross_j / 2, "rss_mb": 200.0, "source": "modelled", "meter": "psutil",
        "profile": "default", **more,
    }  # fmt: skip


@pytest.fixture
def pools():
    """50 unused and 40 test images of each of four classes; the first pixel is the class."""

    def images(per_class, seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (4 * per_class, 8, 8, 3)).astype(np.uint8)
        labels = np.arange(4).repeat(per_class)
        pixels[:, 0, 0, 0] = labels
        ids = [f"{'abcd'[label]}/{seed}-{number}" for number, label in enumerate(labels)]
        return ImageSet.from_arrays(pixels, labels, list("abcd"), ids)

    return cells.Pools(lambda: images(50, 1), lambda: images(40, 2))


# --- what the systems are given


def test_a_cell_keeps_its_images_apart(pools, tmp_path):
    sizes = cells.Sizes(10, 15, 20)
    cell = cells.prepare("label_shift", 0, pools, sizes, tmp_path)  # pixels stay as they are
    field = load_folder(cell.field, (8, 8))
    seen = {image.tobytes() for image in field.read(range(len(field)))}
    for part in ("val", "test"):
        images = cell.images(part)
        assert not seen & {image.tobytes() for image in images.read(range(len(images)))}
        np.testing.assert_array_equal(images.read(range(len(images)))[:, 0, 0, 0], images.labels)
    before = (cell.folder / "val.npz").read_bytes()
    assert cells.prepare("label_shift", 0, pools, sizes, tmp_path) == cell
    assert (cell.folder / "val.npz").read_bytes() == before


def test_classes_are_equally_common_except_where_their_shares_shift(pools, tmp_path):
    sizes = cells.Sizes(10, 15, 20)
    even = cells.prepare("fog", 0, pools, sizes, tmp_path)
    assert load_folder(even.field, (8, 8)).class_counts().tolist() == [10] * 4
    assert even.images("val").class_counts().tolist() == [15] * 4
    assert even.images("test").class_counts().tolist() == [20] * 4
    skewed = [cells.prepare("label_shift", seed, pools, cells.Sizes(10, 15, 40), tmp_path) for seed in range(3)]
    orders = set()
    for cell in skewed:
        parts = [load_folder(cell.field, (8, 8)), cell.images("val"), cell.images("test")]
        counts = [part.class_counts() for part in parts]
        assert len({tuple(np.argsort(count)) for count in counts}) == 1, "the same shares everywhere"
        assert all(count.min() >= 2 and count.max() >= 5 * count.min() for count in counts)
        orders.add(tuple(np.argsort(counts[0])))
    assert len(orders) > 1


def test_seeds_draw_other_images_and_other_weather(pools, tmp_path):
    first, second = (cells.prepare("fog", seed, pools, cells.Sizes(10, 15, 20), tmp_path) for seed in (0, 1))
    assert not np.array_equal(first.images("test").read([0]), second.images("test").read([0]))
    names = [{path.name for path in cell.field.rglob("*.png")} for cell in (first, second)]
    assert names[0] != names[1]


def test_an_interrupted_preparation_starts_again(pools, tmp_path):
    sizes = cells.Sizes(10, 15, 20)
    whole = cells.prepare("fog", 0, pools, sizes, tmp_path)
    whole.folder.rename(whole.folder.with_suffix(".part"))
    (whole.folder.with_suffix(".part") / "test.npz").unlink()
    again = cells.prepare("fog", 0, pools, sizes, tmp_path)
    assert len(again.images("test")) == 80 and not whole.folder.with_suffix(".part").exists()


@pytest.mark.slow
def test_held_out_families_are_refused_where_settings_are_chosen(tmp_path):
    assert {*cells.TUNING, *cells.HELD_OUT} == {*cells.CAMERA} and len(cells.HELD_OUT) >= 2
    for shifts in ("all", "held-out", "fog,jpeg"):
        done = benchmark("--work", tmp_path, "--cifar", tmp_path, "--shifts", shifts, "--part", "val")
        assert done.returncode == 2 and "not for choosing settings" in done.stderr and done.stdout == ""


# --- what is known of finished runs


def test_options_can_be_changed_by_name():
    changed = ["dense", "--epochs", "2", "--optimizer", "sgd", "--lr", "0.01", *systems.BF16]
    assert systems.options("dense-2@sgd:0.01") == systems.options("dense-2@sgd:0.01" + systems.ROBUST) == changed
    assert systems.options("last@adam:1e-4:3")[2] == "3"
    for name, words in (("dense", "dense-"), ("bn@sgd:0.1", "not trained"), ("auto@sgd:1", "not trained")):
        with pytest.raises(UsageError, match=words):
            systems.options(name)


def test_lines_survive_a_power_cut(tmp_path):
    path = tmp_path / "results.jsonl"
    results.append(path, row("bn", "fog"))
    with path.open("a") as file:
        file.write('{"part": "val", "sh')
    results.append(path, row("bn", "fog", accuracy=0.9))
    results.append(path, row("bn", "jpeg"))
    rows = results.load(path)
    assert [r["accuracy"] for r in rows.values()] == [0.9, 0.8]


def test_rows_of_changed_systems_are_left_out():
    stale = {**row("ours-bn", "fog"), "options": ["--plan", "other"]}
    rows = [stale, row("bn", "fog"), row("bn", "fog", accuracy=0.9), row("bn", "fog", seed=1)]
    assert [(r["seed"], r["accuracy"]) for r in results.latest(rows, "val", 1)] == [(0, 0.9), (1, 0.8)]
    assert results.latest(rows, "test", 1) == results.latest(rows, "val", 2) == []


# --- the table


def test_systems_are_compared_in_the_cells_that_both_finished():
    rows = [row("dense-10", s, n, a, 900.0) for s, n, a in (("fog", 0, 0.80), ("fog", 1, 0.82), ("blur_noise", 0, 0.6))]
    rows += [row("auto", "fog", 0, 0.81, 90.0), row("auto", "blur_noise", 0, 0.58, 30.0)]
    rows.append({**row("auto", "fog", 1), "failed": "no such plan"})
    table = report.Table(rows, ["fog", "blur_noise"])
    gain, worst = table.gain("auto", "dense-10")
    assert gain == pytest.approx(-0.005) and worst == pytest.approx(-0.02)
    assert table.ratio("gross_j", "dense-10", "auto") == pytest.approx(900 / 60), "medians"
    assert table.mean("dense-10", "accuracy") == pytest.approx((0.81 + 0.6) / 2)


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ((0.80, 0.80, 0.80, 0.80), "dense-1"),
        ((0.78, 0.796, 0.80, 0.80), "dense-2"),
        ((0.7, 0.71, 0.72, 0.8), "dense-5"),
    ],
)
def test_the_honest_opponent_is_the_cheapest_good_schedule(accuracies, chosen):
    rows = [row(name, "fog", accuracy=a) for name, a in zip(systems.SCHEDULES, accuracies, strict=True)]
    assert report.Table(rows, cells.TUNING).honest() == chosen
    assert report.Table(rows[1:], cells.TUNING).honest() is None
    assert report.Table(rows, cells.HELD_OUT).honest() is None


def test_failures_are_told_and_not_fatal(tmp_path):
    rows = [row("dense-10", "fog"), {**row("auto", "fog"), "failed": "edge-sel: no plan is called 'auto'"}]
    del rows[1]["accuracy"], rows[1]["gross_j"]
    lines = []
    report.show(rows, lines.append)
    assert any("| auto" in line and "1 failed" in line for line in lines)
    assert any("no plan is called" in line for line in lines)
    report.write_csv(tmp_path / "x.csv", rows)
    with (tmp_path / "x.csv").open() as file:
        written = list(csv.DictReader(file))
    assert written[1]["accuracy"] == "" and written[0]["accuracy"] == "0.8"


# --- measuring


def test_a_process_is_measured_from_outside(tmp_path):
    work = "import time; d = bytearray(60 << 20); t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    profile = load_profile("cloud-vm")
    busy = measured([sys.executable, "-c", work], tmp_path / "busy", profile, 1)
    assert busy["exit"] == 0 and 0.3 < busy["cpu_s"] < 1.5 and 60 < busy["rss_mb"] < 120
    assert busy["source"] in ("measured", "modelled")
    if busy["source"] == "modelled":
        assert busy["gross_j"] - busy["net_j"] == pytest.approx(profile.idle_w * busy["wall_s"])
    fallen = measured([sys.executable, "-c", "raise SystemExit('out of luck')"], tmp_path / "bad", profile, 1)
    assert fallen["exit"] == 1 and fallen["last_words"] == "out of luck"
    assert fallen["rss_mb"] < 40, "not the memory of the process that started it"


# --- from end to end


def benchmark(*arguments, **options):
    command = [sys.executable, str(TOOLS / "field_benchmark.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
def test_the_short_form_runs_and_goes_on(tmp_path):
    done = benchmark("--work", tmp_path, "--short")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and not any("failed" in r for r in rows)
    accuracy = {(r["system"], r["shift"]): r["accuracy"] for r in rows}
    for shift in ("low_light", "fog"):
        assert accuracy["auto", shift] > accuracy["as-shipped", shift] + 0.2
        assert accuracy["bn", shift] > accuracy["as-shipped", shift] + 0.2
    assert "| auto" in done.stdout and (tmp_path / "field-val.csv").is_file()
    results.append(tmp_path / "results.jsonl", {**rows[1], "failed": "a power cut"})
    again = benchmark("--work", tmp_path, "--short")
    assert again.returncode == 0 and again.stdout == done.stdout
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 12
    shown = benchmark("--work", tmp_path, "--report")
    assert shown.stdout == done.stdout
