"""Calibration: points on a line give its constants, and what is written can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.config.profiles import Profile, load_profile
from edge_sel.errors import DataError
from edge_sel.power.calibrate import Fit, Point, fit_line, profile_toml, read_points


@given(st.floats(0.1, 50), st.floats(1, 200), st.lists(st.floats(0, 1), max_size=8))
def test_points_on_a_line_give_that_line(idle_w: float, span_w: float, loads: list[float]) -> None:
    fit = fit_line([Point(load, idle_w + span_w * load) for load in [0.0, *loads, 1.0]])
    assert fit.idle_w == pytest.approx(idle_w, abs=1e-6)
    assert fit.max_w == pytest.approx(idle_w + span_w)
    assert fit.error_percent == pytest.approx(0, abs=1e-6) and fit.worst_percent == pytest.approx(0, abs=1e-4)


def test_the_error_is_in_per_cent() -> None:
    fit = fit_line([Point(0, 11), Point(0, 9), Point(1, 29), Point(1, 31)])
    assert fit == pytest.approx((10, 30, 100 * 1 / 20, 100 * 1 / 9))


@pytest.mark.parametrize(
    ("points", "part"),
    [
        ([], "two utilisations that lie 0.2 apart"),
        ([Point(0.5, 10), Point(0.5, 12)], "two utilisations that lie 0.2 apart"),
        ([Point(0.1, 10), Point(0.2, 12)], "two utilisations that lie 0.2 apart"),
        ([Point(0, 12), Point(1, 10)], "do not rise with the load (-2.00 W"),
        ([Point(0, 12), Point(1, 12)], "do not rise with the load (+0.00 W"),
        ([Point(0, 12), Point(1, 12.001)], "do not rise with the load (+0.00 W"),
        ([Point(0.5, 1), Point(1, 12)], "the line gives -10.00 W at rest"),
    ],
)
def test_points_that_give_no_line_are_refused_with_the_reason(points: list[Point], part: str) -> None:
    with pytest.raises(DataError) as error:
        fit_line(points, "plug.csv")
    assert part in str(error.value) and "plug.csv" in str(error.value)


def test_points_just_far_enough_apart_are_enough() -> None:
    assert fit_line([Point(0.1, 10), Point(0.3, 12)]).max_w == pytest.approx(19)


def test_columns_may_stand_in_any_order_among_others(tmp_path: Path) -> None:
    path = tmp_path / "plug.csv"
    path.write_text("\ufeffwatts, note, utilisation\n5.5, rest, 0\n\n12, busy, 1.0\n", encoding="utf-8")
    assert read_points(path) == [Point(0, 5.5), Point(1, 12)]


@given(
    fit=st.builds(Fit, st.floats(0, 100), st.floats(101, 500), st.floats(0, 50), st.floats(0, 100)),
    max_c=st.none() | st.floats(1, 150),
    threads=st.none() | st.integers(0, 64),
    batch_size=st.none() | st.integers(1, 512),
    note=st.text(),
)
def test_what_is_written_can_be_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    fit: Fit,
    max_c: float | None,
    threads: int | None,
    batch_size: int | None,
    note: str,
) -> None:
    base = Profile("base", 1.0, 2.0, ("jetson", "psutil"), max_c, threads, batch_size)
    path = tmp_path_factory.getbasetemp() / "mine.toml"
    path.write_text(profile_toml(fit, base, [note, "x y " * 100]), encoding="utf-8")
    loaded = load_profile(path)
    assert (loaded.idle_w, loaded.max_w) == pytest.approx((fit.idle_w, fit.max_w), abs=1e-3)
    assert (loaded.meters, loaded.max_c) == (base.meters, max_c)
    assert (loaded.threads, loaded.batch_size) == (threads, batch_size)
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120
