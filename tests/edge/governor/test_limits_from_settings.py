"""The limits that settings and profile ask for, and one look at all sensors."""

from edge_sel.config.profiles import Profile
from edge_sel.config.settings import resolve
from edge_sel.edge.governor import make_reader
from edge_sel.edge.limits import (
    BatteryFloor,
    Ceiling,
    Deadline,
    EnergyBudget,
    MainsOnly,
    PowerCap,
    QuietHours,
    Readings,
    limits_of,
)
from edge_sel.power.battery import Supply


def test_no_setting_no_limit():
    assert limits_of(resolve(), 100.0) == []


def test_every_setting_is_a_limit_those_that_stop_first():
    flags = {
        "on_ac_only": "true", "quiet_hours": "22:00-07:00", "power_cap_w": "8W", "max_temp_c": "75C",
        "battery_floor": "20%", "deadline_s": "30m", "energy_budget_j": "500J",
    }  # fmt: skip
    limits = limits_of(resolve(flags=flags), 100.0)
    assert limits[:3] == [EnergyBudget(500.0), Deadline(1900.0), BatteryFloor(0.2)]
    ceiling, cap, mains, hours = limits[3:]
    assert isinstance(ceiling, Ceiling) and (ceiling.max_c, ceiling.strict) == (75.0, True)
    assert isinstance(cap, PowerCap) and cap.cap_w == 8.0
    assert isinstance(mains, MainsOnly) and hours == QuietHours(1320, 420)
    for key, text in flags.items():
        assert len(limits_of(resolve(flags={key: text}), 0.0)) == 1
    assert len({limit.name for limit in limits}) == 7 and all(limit.stopped for limit in limits)


def test_the_ceiling_of_a_profile_is_not_strict():
    (limit,) = limits_of(resolve(profile=Profile("board", 1.0, 2.0, max_c=78.0)), 0.0)
    assert (limit.max_c, limit.strict) == (78.0, False)


def test_one_look_at_all_sensors():
    """The battery changes slowly: every five seconds are enough for it."""
    now_s, asked = 0.0, []

    def supply():
        asked.append(now_s)
        return Supply(0.5 - now_s / 100, now_s < 6)

    sense = make_reader(lambda: now_s, lambda: 10 * now_s, lambda: 40 + now_s, supply, lambda: 600)
    looks = []
    for now_s in (0.0, 1.0, 4.9, 5.0, 9.0, 10.0):  # noqa: B007 (the sensors look at it)
        looks.append(sense())
    assert looks[1] == Readings(1.0, 10.0, 41.0, 0.5, True, 600)
    assert looks[-1] == Readings(10.0, 100.0, 50.0, 0.4, False, 600)
    assert asked == [0.0, 5.0, 10.0]
