"""Settings: precedence, origins, and every mistake named at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.config.profiles import Profile
from edge_sel.config.schema import schema_of
from edge_sel.config.settings import Settings, resolve
from edge_sel.errors import UsageError

PROFILE = Profile("bench", idle_w=1.0, max_w=2.0, threads=3, batch_size=8)


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_is_the_defaults() -> None:
    resolved = resolve()
    assert resolved.settings == Settings()
    assert set(resolved.origins.values()) == {"default"}
    assert list(resolved.origins) == list(schema_of(Settings))


def test_the_defaults_are_allowed_and_documented() -> None:
    for key, spec in schema_of(Settings).items():
        default = getattr(Settings(), key)
        assert spec.help
        assert default is None or spec.read(default, text=False) == default
    assert schema_of(Settings)["gate"].choices == ("sundew", "hard", "random", "off")


def test_the_last_layer_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "batch_size = 16\nepochs = 7\nseed = 1\n")
    environ = {"EDGE_SEL_EPOCHS": "9", "EDGE_SEL_SEED": "2", "HOME": "/", "EDGE_SEL_CIFAR10": "/data"}
    resolved = resolve(profile=PROFILE, toml_file=path, environ=environ, flags={"seed": 3, "plan": None})
    settings, origins = resolved.settings, resolved.origins
    assert (settings.threads, origins["threads"]) == (3, "profile:bench")
    assert (settings.batch_size, origins["batch_size"]) == (16, f"file:{path}")
    assert (settings.epochs, origins["epochs"]) == (9, "env:EDGE_SEL_EPOCHS")
    assert (settings.seed, origins["seed"]) == (3, "flag")
    assert (settings.plan, origins["plan"]) == (Settings().plan, "default")
    stored = json.loads(json.dumps(resolved.to_json()))
    assert stored["seed"] == {"value": 3, "origin": "flag"}


LAYERS = st.fixed_dictionaries({}, optional={name: st.integers(1, 99) for name in ("file", "env", "flag", "profile")})


@given(LAYERS)
def test_precedence(tmp_path_factory: pytest.TempPathFactory, layers: dict[str, int]) -> None:
    path = None
    if "file" in layers:
        path = write(tmp_path_factory.mktemp("layers"), f"batch_size = {layers['file']}")
    resolved = resolve(
        profile=Profile("p", 1.0, 2.0, batch_size=layers["profile"]) if "profile" in layers else None,
        toml_file=path,
        environ={"EDGE_SEL_BATCH_SIZE": str(layers["env"])} if "env" in layers else {},
        flags={"batch_size": layers.get("flag")},
    )
    winner = next((name for name in ("flag", "env", "file", "profile") if name in layers), "default")
    assert resolved.settings.batch_size == layers.get(winner, 32)
    assert resolved.origins["batch_size"].partition(":")[0] == winner


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("TARGET_RATE", "6%", "target_rate", 0.06),
        ("TARGET_RATE", "1", "target_rate", 1.0),
        ("CHECKPOINT_EVERY_S", "2m", "checkpoint_every_s", 120.0),
        ("CHECKPOINT_EVERY_S", "45", "checkpoint_every_s", 45.0),
        ("REQUIRE_MEASURED", "true", "require_measured", True),
        ("REQUIRE_MEASURED", "0", "require_measured", False),
        ("GAMMA", "none", "gamma", None),
        ("GAMMA", "0.002", "gamma", 0.002),
        ("LEARNING_RATE", "1e-4", "learning_rate", 1e-4),
        ("ENGINE", "torch", "engine", "torch"),
        ("PLAN", "bn,last2", "plan", "bn,last2"),
        ("ON_AC_ONLY", "yes", "on_ac_only", True),
    ],
)
def test_text_of_variables_and_flags(variable: str, text: str, key: str, value: Any) -> None:
    assert getattr(resolve(environ={f"EDGE_SEL_{variable}": text}).settings, key) == value
    assert getattr(resolve(flags={key: text}).settings, key) == value


LIMITS = [
    ("energy_budget_j", "500J", 500.0),
    ("energy_budget_j", "0.2Wh", 720.0),
    ("max_temp_c", "75C", 75.0),
    ("battery_floor", "20%", 0.2),
    ("deadline_s", "1h30m", 5400.0),
    ("power_cap_w", "7.5W", 7.5),
    ("quiet_hours", "22:00-07:00", "22:00-07:00"),
]


@pytest.mark.parametrize(("key", "text", "value"), LIMITS)
def test_limits_are_given_with_their_unit_anywhere(tmp_path: Path, key: str, text: str, value: Any) -> None:
    layers = (
        resolve(flags={key: text}),
        resolve(environ={f"EDGE_SEL_{key.upper()}": text}),
        resolve(toml_file=write(tmp_path, f'{key} = "{text}"')),
    )
    for resolved in layers:
        assert getattr(resolved.settings, key) == value
    assert [resolved.origins[key].partition(":")[0] for resolved in layers] == ["flag", "env", "file"]


@pytest.mark.parametrize("key", [key for key, _, value in LIMITS if isinstance(value, float)])
def test_a_plain_number_in_a_file_is_in_the_unit_of_its_key(tmp_path: Path, key: str) -> None:
    for number, value in (("1", 1.0), ("0.5", 0.5)):
        assert getattr(resolve(toml_file=write(tmp_path, f"{key} = {number}")).settings, key) == value


@pytest.mark.parametrize("key", [key for key, _, _ in LIMITS])
def test_none_lifts_a_limit(tmp_path: Path, key: str) -> None:
    text = next(text for name, text, _ in LIMITS if name == key)
    path = write(tmp_path, f'{key} = "{text}"')
    for above in ({"flags": {key: "none"}}, {"environ": {f"EDGE_SEL_{key.upper()}": "none"}}):
        assert getattr(resolve(toml_file=path, **above).settings, key) is None  # type: ignore[arg-type]


def test_the_profile_gives_a_temperature_that_anything_overrules(tmp_path: Path) -> None:
    warm = Profile("warm", idle_w=1.0, max_w=2.0, max_c=78.0)
    resolved = resolve(profile=warm)
    assert (resolved.settings.max_temp_c, resolved.origins["max_temp_c"]) == (78.0, "profile:warm")
    assert resolve(profile=warm, flags={"max_temp_c": "60C"}).settings.max_temp_c == 60.0
    lifted = resolve(profile=warm, flags={"max_temp_c": "none"})
    assert (lifted.settings.max_temp_c, lifted.origins["max_temp_c"]) == (None, "flag")
    assert resolve(profile=PROFILE).settings.max_temp_c is None


def test_none_in_a_file_lifts_the_temperature_of_the_profile(tmp_path: Path) -> None:
    warm = Profile("warm", idle_w=1.0, max_w=2.0, max_c=78.0)
    assert resolve(profile=warm, toml_file=write(tmp_path, 'max_temp_c = "none"')).settings.max_temp_c is None


@pytest.mark.parametrize(
    ("key", "text", "allowed"),
    [
        ("energy_budget_j", "500", "a number above 0, such as 500J or none"),
        ("energy_budget_j", "0J", "a number above 0, such as 500J or none"),
        ("max_temp_c", "75", "a number above 0 and at most 150, such as 75C or none"),
        ("max_temp_c", "151C", "a number above 0 and at most 150, such as 75C or none"),
        ("battery_floor", "20", "a number above 0 and at most 1, such as 20% or none"),
        ("deadline_s", "30", "a number above 0, such as 30m or none"),
        ("power_cap_w", "8", "a number above 0, such as 8W or none"),
        ("power_cap_w", "8J", "a number above 0, such as 8W or none"),
        ("quiet_hours", "22-7", "like 22:00-07:00"),
        ("on_ac_only", "plugged", "true or false"),
        ("epochs", "0", "a whole number at least 1 and at most 1000000"),
        ("epochs", "1.5", "a whole number at least 1 and at most 1000000"),
        ("target_rate", "0", "a number above 0 and at most 1"),
        ("target_rate", "150%", "a number above 0 and at most 1"),
        ("validation_fraction", "1", "a number above 0 and at most 0.9"),
        ("learning_rate", "nan", "a number above 0 or none"),
        ("learning_rate", "inf", "a number above 0 or none"),
        ("gamma", "-1", "a number at least 0 or none"),
        ("gate", "sundwe", "one of sundew, hard, random, off"),
        ("meter", "sun", "one of auto, jetson, rapl, nvml, battery, psutil"),
        ("require_measured", "maybe", "true or false"),
        ("checkpoint_every_s", "soon", "a number above 0"),
        ("checkpoint_every_s", "", "a number above 0"),
        ("plan", " ", "some text"),
    ],
)
def test_a_bad_value_names_key_origin_and_what_is_allowed(key: str, text: str, allowed: str) -> None:
    variable = f"EDGE_SEL_{key.upper()}"
    with pytest.raises(UsageError) as error:
        resolve(environ={variable: text})
    assert str(error.value).endswith(f"(env:{variable}) must be {allowed}")
    assert str(error.value).startswith(f"{key} = ")


def test_types_in_a_file_are_strict(tmp_path: Path) -> None:
    path = write(tmp_path, 'epochs = "5"\nseed = true\nrequire_measured = 1\nlearning_rate = 1\n')
    with pytest.raises(UsageError) as error:
        resolve(toml_file=path)
    assert "epochs = '5'" in str(error.value)
    assert "seed = True" in str(error.value)
    assert "require_measured = 1" in str(error.value)
    assert "learning_rate" not in str(error.value)


def test_all_mistakes_of_all_layers_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "epoch = 3\n[gate]\nkind = 1\n")
    with pytest.raises(UsageError) as error:
        resolve(toml_file=path, environ={"EDGE_SEL_SEEDS": "1", "EDGE_SEL_THREADS": "-1"}, flags={"gate": "on"})
    text = str(error.value)
    assert f"epoch is not known (file:{path}): did you mean epochs?" in text
    assert "gate.kind is not known" in text
    assert "EDGE_SEL_SEEDS is not known (env:EDGE_SEL_SEEDS): did you mean EDGE_SEL_SEED?" in text
    assert "threads = '-1' (env:EDGE_SEL_THREADS)" in text
    assert "gate = 'on' (flag) must be one of sundew, hard, random, off" in text
    assert error.value.exit_code == 2


def test_reserved_variables_are_left_alone() -> None:
    assert resolve(environ={"EDGE_SEL_SYSFS_ROOT": "/x", "EDGE_SEL_CIFAR10": "/y"}).settings == Settings()
    with pytest.raises(UsageError, match="EDGE_SEL_SYSFS is not known"):
        resolve(environ={"EDGE_SEL_SYSFS": "/x"})


@given(st.sampled_from(sorted(schema_of(Settings))), st.text(max_size=8))
def test_any_text_is_accepted_or_refused_in_one_line(key: str, text: str) -> None:
    try:
        resolve(environ={f"EDGE_SEL_{key.upper()}": text})
    except UsageError as error:
        assert key in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize("key", [key for key, spec in schema_of(Settings).items() if spec.kind in (int, float)])
@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_of_many_digits_is_refused_in_a_short_line(tmp_path: Path, key: str, digits: int) -> None:
    number = "9" * digits
    for layer in (
        {"flags": {key: number}},
        {"environ": {f"EDGE_SEL_{key.upper()}": number}},
        {"toml_file": write(tmp_path, f"{key} = {number}")},
    ):
        with pytest.raises(UsageError) as error:
            resolve(**layer)  # type: ignore[arg-type]
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 10_000 + "]" * 10_000,
        "a = " + "{b=" * 10_000 + "1" + "}" * 10_000,
        "a." * 10_000 + "b = 1",
        "#" * 2_000_000,
    ],
)
def test_a_file_that_is_nested_deeply_or_long_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read as TOML"):
        resolve(toml_file=write(tmp_path, text))


def test_a_file_that_never_ends_is_not_read() -> None:
    with pytest.raises(UsageError, match="not a regular file"):
        resolve(toml_file=Path("/dev/zero"))


@pytest.mark.parametrize(("text", "pixels"), [("16M", 16_000_000), ("2.5M", 2_500_000), ("640", 640)])
def test_pixels_may_be_millions(text: str, pixels: int) -> None:
    assert resolve(flags={"max_pixels": text}).settings.max_pixels == pixels


@pytest.mark.parametrize("threads", ["100000", "257000"])
def test_threads_have_a_limit(threads: str) -> None:
    with pytest.raises(UsageError, match="at most"):
        resolve(flags={"threads": threads})
