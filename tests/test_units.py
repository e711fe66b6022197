"""Units: what is printed can be read again, and what cannot be read says what can."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel import units
from edge_sel.errors import UsageError

POSITIVE = st.floats(min_value=1e-9, max_value=1e15, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "joules"),
    [
        ("500J", 500.0),
        ("0.2Wh", 720.0),
        ("2kJ", 2000.0),
        ("300mJ", 0.3),
        ("1 MJ", 1e6),
        (" 1.5 kWh ", 5.4e6),
        ("1e3J", 1000.0),
        (".5j", 0.5),
        ("0J", 0.0),
        ("12µJ", 12e-6),
    ],
)
def test_energy(text: str, joules: float) -> None:
    assert units.parse_energy_j(text) == pytest.approx(joules)


def test_the_prefix_of_an_energy_is_case_sensitive() -> None:
    assert units.parse_energy_j("1MJ") == 1e9 * units.parse_energy_j("1mJ")


@pytest.mark.parametrize(
    ("text", "watts"),
    [("8W", 8), ("7.5 W", 7.5), ("500mW", 0.5), ("1kW", 1000), ("15w", 15), ("0W", 0), (" 2MW ", 2e6)],
)
def test_power(text: str, watts: float) -> None:
    assert units.parse_power_w(text) == pytest.approx(watts)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("22:00-07:00", (1320, 420)),
        ("9:05 - 17:30", (545, 1050)),
        (" 00:00-23:59 ", (0, 1439)),
        ("23:59-0:00", (1439, 0)),
    ],
)
def test_hours(text: str, minutes: tuple[int, int]) -> None:
    assert units.parse_hours(text) == minutes


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("1h30m", 5400), ("90s", 90), ("250ms", 0.25)])
def test_duration(text: str, seconds: float) -> None:
    assert units.parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.5h", 5400), ("2d", 172800), ("1 h 30 min", 5400), ("1m30s500ms", 90.5)],
)
def test_more_durations(text: str, seconds: float) -> None:
    assert units.parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "celsius"), [("75C", 75), ("75 °C", 75), ("-5C", -5), ("62.5c", 62.5)])
def test_temperature(text: str, celsius: float) -> None:
    assert units.parse_temperature_c(text) == celsius


@pytest.mark.parametrize(
    ("text", "share"), [("20%", 0.2), ("0.2", 0.2), ("100%", 1), ("1", 1), ("0", 0), ("6 %", 0.06)]
)
def test_fraction(text: str, share: float) -> None:
    assert units.parse_fraction(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "text", ["", "500", "J", "-5J", "5 joules", "1e999J", "1mj", "nanJ", "infJ", "5JJ", "5Jx\n", "1_0J"]
)
def test_a_bad_energy_names_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match=r"write 500J, 2kJ, 300mJ or 0\.2Wh") as error:
        units.parse_energy_j(text)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "90", "m30", "30m1h", "1h1h", "-3s", "3x", "1h 30", "s", "1m2min", "9e999s"])
def test_a_bad_duration_names_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match="write 30m, 1h30m, 90s or 250ms"):
        units.parse_duration_s(text)


@pytest.mark.parametrize("text", ["", "75", "75F", "-300C", "C", "1e999C"])
def test_a_bad_temperature_names_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match="such as 75C"):
        units.parse_temperature_c(text)


@pytest.mark.parametrize("text", ["", "20", "101%", "-1%", "1.01", "%", "a fifth"])
def test_a_bad_fraction_names_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match=r"write 20% or 0\.2"):
        units.parse_fraction(text)


@pytest.mark.parametrize("text", ["", "8", "W", "-8W", "8 watts", "8J", "1e999W", "nanW", "8WW", "8Wh"])
def test_a_bad_power_names_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match=r"write 8W, 7\.5W or 500mW"):
        units.parse_power_w(text)


@pytest.mark.parametrize(
    "text",
    ["", "22-7", "22:00", "22:00-", "24:00-07:00", "22:60-07:00", "22:0-07:00", "07:00-07:00", "7:00-07:00", "-1:00-2:00", "22:00-07:00:00", "٢٢:00-07:00"],
)  # fmt: skip
def test_bad_hours_name_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match="two different times, such as 22:00-07:00"):
        units.parse_hours(text)


@given(st.integers(0, 1439), st.integers(0, 1439))
def test_any_two_times_are_read(begin: int, end: int) -> None:
    text = f"{begin // 60:02}:{begin % 60:02}-{end // 60}:{end % 60:02}"
    if begin == end:
        with pytest.raises(UsageError):
            units.parse_hours(text)
    else:
        assert units.parse_hours(text) == (begin, end)


@given(st.floats(min_value=1e-3, max_value=9e8))
def test_power_round_trip(watts: float) -> None:
    assert units.parse_power_w(units.format_power(watts)) == pytest.approx(watts, rel=0.006)


@given(POSITIVE)
def test_energy_round_trip(joules: float) -> None:
    assert units.parse_energy_j(units.format_energy(joules)) == pytest.approx(joules, rel=0.006)


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_duration_round_trip(seconds: float) -> None:
    assert units.parse_duration_s(units.format_duration(seconds)) == pytest.approx(seconds, rel=0.006, abs=0)


@given(st.floats(min_value=0, max_value=1e300))
def test_plain_joules_are_read_exactly(joules: float) -> None:
    assert units.parse_energy_j(f"{joules!r}J") == joules


@given(st.floats(min_value=0, max_value=1))
def test_plain_fractions_are_read_exactly(share: float) -> None:
    assert units.parse_fraction(repr(share)) == share
    assert units.parse_fraction(f"{share * 100!r}%" if share * 100 <= 100 else "100%") == pytest.approx(share)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (
        units.parse_energy_j,
        units.parse_power_w,
        units.parse_duration_s,
        units.parse_temperature_c,
        units.parse_fraction,
    ):
        try:
            assert math.isfinite(parse(text))
        except UsageError as error:
            assert "\n" not in str(error)


@given(POSITIVE, st.floats(min_value=1.02, max_value=1e3))
def test_more_energy_is_never_printed_as_less(joules: float, factor: float) -> None:
    small, large = units.format_energy(joules), units.format_energy(joules * factor)
    assert units.parse_energy_j(small) <= units.parse_energy_j(large)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (units.format_energy(512), "512 J"),
        (units.format_energy(999.9), "1 kJ"),
        (units.format_energy(1234), "1.23 kJ"),
        (units.format_energy(0.3), "300 mJ"),
        (units.format_energy(0), "0 J"),
        (units.format_energy(None), "unavailable"),
        (units.format_power(12.34), "12.3 W"),
        (units.format_power(None), "unavailable"),
        (units.format_flops(33.521886e12), "33.5 TFLOP"),
        (units.format_flops(12e18), "12000 PFLOP"),
        (units.format_duration(0), "0 s"),
        (units.format_duration(0.25), "250 ms"),
        (units.format_duration(0.9999), "1 s"),
        (units.format_duration(12.34), "12.3 s"),
        (units.format_duration(59.99), "1m"),
        (units.format_duration(90), "1m30s"),
        (units.format_duration(5405), "1h30m5s"),
        (units.format_duration(7200), "2h"),
        (units.format_duration(None), "unavailable"),
    ],
)
def test_printing(shown: str, text: str) -> None:
    assert shown == text
