"""int8 or float32: what is faster and agrees; the choice lasts as long as its rung, also when that is resumed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate, cycle

import numpy as np
import pytest

from edge_sel.config.settings import Settings
from edge_sel.edge.features import cache as features
from edge_sel.edge.features.cache import CHUNK, FILE, open_features
from edge_sel.edge.features.precision import GAIN, TIMED, WORTHWHILE, choose_precision, compare_precisions
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import SetupError
from edge_sel.pack.reader import Pack
from edge_sel.quantize import MOST_ERROR, relative_error
from tests.edge.recording import Recording
from tests.edge.runs import KillAt, Killed, StopAt, digits, events, flipping, outcome, pack, session
from tests.edge.test_features import fresh

COUNT = 240
TRIAL = 2 * CHUNK * (TIMED + 1)


class Timer:
    """A processor clock by which float32 takes 1 s a chunk, int8 so many."""

    def __init__(self, int8_s: float) -> None:
        self._times = accumulate(cycle([0.0, 1.0, 0.0, int8_s]))

    def __call__(self) -> float:
        return next(self._times)


FASTER, SLOWER = 0.5, 2.0


@pytest.fixture
def timed(monkeypatch):
    """timed(FASTER): from now on choices are made by such a clock."""

    def use(int8_s):
        monkeypatch.setattr(features, "choose_precision", lambda *given: choose_precision(*given[:-1], Timer(int8_s)))

    use(FASTER)
    return use


def opened(folder, *, base=None, engine=None, progress=None, expected=1e9, told=None, **given):
    settings = replace(Settings(), **given)
    return open_features(
        engine or OrtEngine(1), base or pack(), "last", digits(COUNT), progress or fresh(digits(COUNT)), settings,
        folder=folder, phase=lambda name: nullcontext(), expected=expected,
        emit=lambda kind, **figures: told.append((kind, figures)) if told is not None else None,
    )  # fmt: skip


# The comparison


def compared(int8_s, error=0.01, times=None):
    chunks = np.random.default_rng(0).standard_normal((TIMED + 1, CHUNK, 3, 8, 8)).astype(np.float32)
    clock = Timer(int8_s) if times is None else partial(next, accumulate(times))
    return compare_precisions(lambda x: x, lambda x: x * np.float32(1 + error), chunks, clock)


@pytest.mark.parametrize(
    ("int8_s", "error", "precision"),
    [
        (FASTER, 0.01, "int8"), (GAIN - 0.01, 0.01, "int8"), (GAIN + 0.01, 0.01, "fp32"), (SLOWER, 0.01, "fp32"),
        (FASTER, MOST_ERROR - 0.001, "int8"), (FASTER, MOST_ERROR + 0.001, "fp32"), (FASTER, np.nan, "fp32"),
        (FASTER, np.inf, "fp32"),
    ],
)  # fmt: skip
def test_int8_where_it_is_faster_and_agrees(int8_s, error, precision):
    found = compared(int8_s, error)
    assert found["precision"] == precision
    assert found["ms_per_image"] == {"fp32": 250.0, "int8": pytest.approx(250 * int8_s)}
    if np.isfinite(error):
        assert found["relative_error"] == pytest.approx(error, rel=1e-3)


def test_the_first_chunk_and_one_that_was_interrupted_do_not_count():
    plain = [0, 1, 0, 0.5]
    others = [*plain * (TIMED - 1), 0, 1, 0, 90]
    assert compared(0, times=[0, 1, 0, 90, *others])["precision"] == "int8"
    assert compared(0, times=[0, 90, 0, 0.5, *[0, 1, 0, 2] * TIMED])["precision"] == "fp32"
    mixed = [t for taken in (0.8, 0.8, 0.8, 2, 2) for t in (0, 1, 0, taken)]
    assert compared(0, times=[0, 1, 0, 90, *mixed])["ms_per_image"]["int8"] == pytest.approx(200)


# The choice


def test_what_is_told(timed, tmp_path):
    told, progress = [], fresh(digits(COUNT))
    opened(tmp_path, progress=progress, told=told)
    ((kind, event),) = told
    assert kind == "prefix" and event["plan"] == "last" and event["precision"] == progress.precision == "int8"
    assert event["ms_per_image"] == {"fp32": 250.0, "int8": 125.0}
    assert 0 < event["relative_error"] < MOST_ERROR
    assert progress.tally.prefixed == TRIAL


def test_what_is_computed_is_what_was_chosen(timed, tmp_path):
    plain, chosen, slow = [
        opened(tmp_path, prefix_precision="fp32"), opened(tmp_path), (timed(SLOWER), opened(tmp_path))[1],
    ]  # fmt: skip
    expected, found, again = (cache.get(np.arange(40)) for cache in (plain, chosen, slow))
    assert 0 < relative_error(found, expected) < MOST_ERROR
    assert again.tobytes() == expected.tobytes()
    assert found.tobytes() == opened(tmp_path, prefix_precision="int8").get(np.arange(40)).tobytes()


def test_too_few_images_or_a_setting_need_no_trial(timed, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "choose_precision", None)
    for given, precision in (
        ({"expected": WORTHWHILE - 1}, "fp32"), ({"prefix_precision": "fp32"}, "fp32"),
        ({"prefix_precision": "int8"}, "int8"), ({"base": without_quantized_variant()}, "fp32"),
    ):  # fmt: skip
        told, progress = [], fresh(digits(COUNT))
        opened(tmp_path, progress=progress, told=told, **given)
        assert (progress.precision, told, progress.tally.prefixed) == (precision, [], 0)


def test_int8_that_the_pack_does_not_have_is_told(timed, tmp_path):
    told, progress = [], fresh(digits(COUNT))
    opened(tmp_path, progress=progress, told=told, prefix_precision="int8", base=without_quantized_variant())
    assert progress.precision == told[0][1]["precision"] == "fp32" and "no int8 prefix" in told[0][1]["why"]


def without_quantized_variant() -> Pack:
    base = pack()
    prefixes = {name: replace(info, int8=None) for name, info in base.manifest.prefixes.items()}
    return base.with_manifest(replace(base.manifest, prefixes=prefixes))


def test_a_choice_made_is_kept(timed, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "choose_precision", None)
    for precision in ("int8", "fp32"):
        progress = fresh(digits(COUNT))
        progress.precision = precision
        opened(tmp_path, progress=progress)
        assert progress.precision == precision


def test_a_device_that_cannot_load_the_quantized_variant(tmp_path):
    class Old(OrtEngine):
        def prefix(self, *given, int8=None):
            if int8:
                raise SetupError("onnxruntime cannot load a graph of the pack")
            return super().prefix(*given)

    told, progress = [], fresh(digits(COUNT))
    cache = opened(tmp_path, engine=Old(1), told=told, progress=progress)
    assert told[0][1]["precision"] == progress.precision == "fp32" and "cannot be loaded" in told[0][1]["why"]
    assert len(cache.get(np.arange(3))) == 3 and progress.tally.prefixed == CHUNK


def test_an_engine_that_cuts_nothing(tmp_path, one_thread):
    from edge_sel.engines.torch import TorchEngine

    told = []
    for given in ({}, {"prefix_precision": "int8"}):
        cache = opened(tmp_path, engine=TorchEngine(1, device="cpu"), told=told, **given)
        assert cache.get(np.arange(3)).shape == (3, 3, 16, 16) and not told


def test_a_file_of_the_other_precision_is_not_used(tmp_path):
    given = {"feature_cache_mb": 0, "feature_cache_disk_mb": 64}
    first = opened(tmp_path, prefix_precision="fp32", **given)
    first.get(np.arange(8))
    first.close(keep=True)
    kept = []
    for precision in ("fp32", "int8"):
        cache = opened(tmp_path, prefix_precision=precision, **given)
        kept.append(int(cache.kept.sum()))
        cache.close(keep=True)
    assert kept == [8, 0] and (tmp_path / FILE).exists()


def test_the_trial_lasts_a_few_chunks(tmp_path):
    engine = Recording()
    opened(tmp_path, engine=engine)
    assert engine.sizes("prefix", "last") == engine.sizes("int8", "last") == [CHUNK] * (TIMED + 1)
    assert len(engine.images("prefix")) == CHUNK * (TIMED + 1)


# Sessions


def run(out, **given):
    given = {"plan": "bn,last", "gate": "off", "curriculum": "off", "prefix_precision": "auto"} | given
    return session(out, base=flipping(pack()), images=digits(COUNT), **given)


def told(out):
    return [event for event in events(out) if event["event"] == "prefix"]


def test_a_session_chooses_once_a_rung(timed, tmp_path):
    run(tmp_path / "auto", plan="bn,last,head").run()
    assert [(e["plan"], e["precision"]) for e in told(tmp_path / "auto")] == [("last", "int8"), ("head", "int8")]
    run(tmp_path / "int8", plan="bn,last,head", prefix_precision="int8").run()
    run(tmp_path / "fp32", plan="bn,last,head", prefix_precision="fp32").run()
    auto, int8, fp32 = (outcome(tmp_path / name) for name in ("auto", "int8", "fp32"))
    assert auto["weights"] == int8["weights"] != fp32["weights"]
    first = [run["epochs"][1]["executed_flops_t"] for run in (auto, int8, fp32)]
    assert first[1] == first[2]
    assert first[0] - first[1] == pytest.approx(TRIAL * pack().prefix("last").flops / 1e12)


@pytest.mark.parametrize("boundary", [9, 12, 15])
def test_a_resumed_rung_keeps_its_choice(boundary, timed, tmp_path):
    run(tmp_path / "one").run()
    out = tmp_path / "two"
    run(out, should_stop=StopAt(boundary)).run()
    assert len(told(out)) == 1
    timed(SLOWER)
    with pytest.raises(Killed):
        run(out, listener=KillAt(2), checkpoint_every_s=0.1).run(resume=True)
    run(out).run(resume=True)
    assert len(told(out)) == 1 and outcome(out) == outcome(tmp_path / "one")


def test_the_next_rung_chooses_anew(timed, tmp_path):
    class Deciding:
        def __call__(self, event):
            if event["event"] == "prefix":
                timed(SLOWER)

    run(tmp_path, plan="last,head", listener=Deciding()).run()
    assert [event["precision"] for event in told(tmp_path)] == ["int8", "fp32"]


def test_the_sessions_clock_decides(tmp_path):
    for int8_s, precision in ((FASTER, "int8"), (SLOWER, "fp32")):
        replace(run(tmp_path / precision, plan="last"), cpu_time=Timer(int8_s)).run()
        assert [event["precision"] for event in told(tmp_path / precision)] == [precision]
