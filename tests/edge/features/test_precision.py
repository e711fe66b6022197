"""int8 or float32: what is faster and agrees; the choice lasts for its training stage, also when that is resumed."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain, repeat

import numpy as np
import pytest

from edge_sel.config.settings import Settings
from edge_sel.edge.features import precision
from edge_sel.edge.features.cache import FILE, open_features
from edge_sel.edge.features.precision import (
    CHUNK,
    GAIN,
    TIMED,
    FrozenBackbone,
    Precision,
    choose_precision,
    compare_precisions,
)
from edge_sel.edge.host import Host
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import SetupError
from edge_sel.pack.reader import Pack
from edge_sel.quantize import MOST_ERROR, relative_error
from tests.edge.recording import Recording
from tests.edge.sessions import KillAt, Killed, StopAt, Ticks, digits, events, flipping, outcome, pack, session

COUNT = 240
TRIAL = 2 * CHUNK * (TIMED + 1)


class Timer:
    """A processor clock by which float32 takes 1 s a chunk, the quantized variant so many in each trial in turn."""

    def __init__(self, *int8_s: float) -> None:
        trials = chain(int8_s, repeat(int8_s[-1]))
        self._times = accumulate(chain.from_iterable([0.0, 1.0, 0.0, each_s] * (TIMED + 1) for each_s in trials))

    def __call__(self) -> float:
        return next(self._times)


FASTER, SLOWER = 0.5, 2.0


@pytest.fixture(autouse=True)
def worth_a_trial(monkeypatch):
    """So few images as these tests have."""
    monkeypatch.setattr(precision, "WORTHWHILE", 200)


def timed(*int8_s):
    """A host on which the trials of a session take so long."""
    return Host(clock=Ticks(), cpu_time=Timer(*int8_s))


def chosen(*, base=None, engine=None, expected=1e9, asked="auto", cpu_time=time.process_time):
    backbone = FrozenBackbone(engine or OrtEngine(1), base or pack(), "last", pack().weights(), digits(COUNT))
    return choose_precision(backbone, asked, expected, cpu_time, lambda name: nullcontext())


def opened(folder, name, *, engine=None, **given):
    """The features of the backbone in this precision."""
    return open_features(
        FrozenBackbone(engine or OrtEngine(1), pack(), "last", pack().weights(), digits(COUNT)), name,
        lambda name: nullcontext(), featured=np.zeros(0, bool), settings=replace(Settings(), **given), folder=folder,
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


def test_a_trial_tells_what_it_took():
    found = chosen(cpu_time=Timer(FASTER))
    assert found.name == found.event["precision"] == "int8" and found.event["plan"] == "last"
    assert found.event["ms_per_image"] == {"fp32": 250.0, "int8": 125.0}
    assert 0 < found.event["relative_error"] < MOST_ERROR
    assert found.computed == TRIAL


def test_each_precision_computes_its_own_features(tmp_path):
    plain, integers = (opened(tmp_path, name).get(np.arange(40)) for name in ("fp32", "int8"))
    assert 0 < relative_error(integers, plain) < MOST_ERROR
    assert opened(tmp_path, "int8").get(np.arange(40)).tobytes() == integers.tobytes()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"expected": 199}, "fp32"), ({"asked": "fp32"}, "fp32"), ({"asked": "int8"}, "int8"),
        ({"base": "without"}, "fp32"),
    ],
)  # fmt: skip
def test_too_few_images_or_a_setting_need_no_trial(given, name):
    given, engine = given | ({"base": without_int8()} if "base" in given else {}), Recording()
    assert chosen(engine=engine, **given) == Precision(name) and engine.calls == []


def test_int8_that_the_pack_does_not_have_is_told():
    found = chosen(asked="int8", base=without_int8())
    assert found.name == found.event["precision"] == "fp32" and "no quantized variant" in found.event["why"]
    assert found.computed == 0


def without_int8() -> Pack:
    base = pack()
    backbones = {name: replace(info, int8=None) for name, info in base.manifest.backbones.items()}
    return base.with_manifest(replace(base.manifest, backbones=backbones))


def test_a_device_that_cannot_load_the_quantized_variant_computes_in_float32(tmp_path):
    class Old(OrtEngine):
        def backbone(self, *given, int8=None):
            if int8:
                raise SetupError("onnxruntime cannot load a graph of the pack")
            return super().backbone(*given)

    found = chosen(engine=Old(1))
    assert found.name == found.event["precision"] == "fp32" and "cannot be loaded" in found.event["why"]
    assert found.computed == 0
    assert len(opened(tmp_path, found.name, engine=Old(1)).get(np.arange(3))) == 3


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_an_engine_that_cuts_nothing_is_fed_images(name, tmp_path, one_thread):
    from edge_sel.engines.torch import TorchEngine

    engine = TorchEngine(1, device="cpu")
    assert chosen(engine=engine) == Precision("fp32")
    assert opened(tmp_path, name, engine=engine).get(np.arange(3)).shape == (3, 3, 16, 16)


def test_a_file_of_the_other_precision_is_not_used(tmp_path):
    given = {"feature_cache_mb": 0, "feature_cache_disk_mb": 64}
    first = opened(tmp_path, "fp32", **given)
    first.get(np.arange(8))
    first.close(keep=True)
    kept = []
    for name in ("fp32", "int8"):
        cache = opened(tmp_path, name, **given)
        kept.append(int(cache.kept.sum()))
        cache.close(keep=True)
    assert kept == [8, 0] and (tmp_path / FILE).exists()


def test_the_trial_lasts_a_few_chunks():
    engine = Recording()
    chosen(engine=engine)
    assert engine.sizes("backbone", "last") == engine.sizes("quantized", "last") == [CHUNK] * (TIMED + 1)
    assert len(engine.images("backbone")) == CHUNK * (TIMED + 1)


# Sessions


def run(out, **given):
    given = {"plan": "bn,last", "gate": "off", "curriculum": "off", "backbone_precision": "auto"} | given
    return session(out, base=flipping(pack()), images=digits(COUNT), **given)


def precision_events(out):
    return [event for event in events(out) if event["event"] == "backbone_precision"]


def test_a_session_chooses_once_a_training_stage(tmp_path):
    run(tmp_path / "auto", plan="bn,last,head", host=timed(FASTER)).run()
    assert [(e["plan"], e["precision"]) for e in precision_events(tmp_path / "auto")] == [
        ("last", "int8"),
        ("head", "int8"),
    ]
    run(tmp_path / "int8", plan="bn,last,head", backbone_precision="int8").run()
    run(tmp_path / "fp32", plan="bn,last,head", backbone_precision="fp32").run()
    auto, int8, fp32 = (outcome(tmp_path / name) for name in ("auto", "int8", "fp32"))
    assert auto["weights"] == int8["weights"]
    losses = [[epoch["validation_loss"] for epoch in run["epochs"]] for run in (auto, int8, fp32)]
    assert losses[0] == losses[1] != losses[2]
    first = [run["epochs"][1]["executed_flops_t"] for run in (auto, int8, fp32)]
    assert first[1] == first[2]
    assert first[0] - first[1] == pytest.approx(TRIAL * pack().backbone("last").flops / 1e12)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("boundary", [15, 16, 18])
def test_a_resumed_training_stage_keeps_its_choice(boundary, tmp_path):
    run(tmp_path / "one", host=timed(FASTER)).run()
    out = tmp_path / "two"
    run(out, should_stop=StopAt(boundary), host=timed(FASTER)).run()
    assert len(precision_events(out)) == 1
    with pytest.raises(Killed):
        run(out, listener=KillAt(2), checkpoint_every_s=0.1, resume=True, host=timed(SLOWER)).run()
    run(out, resume=True, host=timed(SLOWER)).run()
    assert len(precision_events(out)) == 1 and outcome(out) == outcome(tmp_path / "one")


def test_the_next_training_stage_chooses_anew(tmp_path):
    run(tmp_path, plan="last,head", host=timed(FASTER, SLOWER)).run()
    assert [event["precision"] for event in precision_events(tmp_path)] == ["int8", "fp32"]


def test_the_sessions_clock_decides(tmp_path):
    for int8_s, name in ((FASTER, "int8"), (SLOWER, "fp32")):
        run(tmp_path / name, plan="last", host=timed(int8_s)).run()
        assert [event["precision"] for event in precision_events(tmp_path / name)] == [name]


def test_a_choice_outlives_a_kill_before_its_first_use(tmp_path):
    """A clock made it: another process would have chosen otherwise."""
    run(tmp_path / "one", plan="last", host=timed(FASTER)).run()
    with pytest.raises(Killed):
        run(tmp_path / "two", plan="last", listener=KillAt(1), host=timed(FASTER)).run()
    run(tmp_path / "two", plan="last", resume=True, host=timed(SLOWER)).run()
    assert len(precision_events(tmp_path / "two")) == 1 and outcome(tmp_path / "two") == outcome(tmp_path / "one")


def test_a_finished_run_whose_files_are_lost_is_made_again_with_its_choices(tmp_path):
    run(tmp_path, plan="last,head", host=timed(FASTER)).run()
    before = outcome(tmp_path)
    for name in ("weights.safetensors", "model.onnx", "run.json"):
        (tmp_path / name).unlink()
    run(tmp_path, plan="last,head", resume=True, host=timed(SLOWER)).run()
    assert outcome(tmp_path) == before
