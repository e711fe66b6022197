"""Sessions train the same wherever features are kept, and compute none for nothing."""

from __future__ import annotations

import pytest

from edge_sel.edge.features.cache import CHUNK, FILE
from tests.edge.features.places import PLACES
from tests.edge.recording import Recording
from tests.edge.sessions import KillAt, Killed, StopAt, damage, events, flipping, outcome, pack, session


def run(out, place, *, plan="bn,last", **given):
    memory, disk = PLACES[place]
    given = {"gate": "off", "curriculum": "off"} | given
    return session(out, base=flipping(pack()), plan=plan, feature_cache_mb=memory, feature_cache_disk_mb=disk, **given)


def test_every_place_trains_the_same(tmp_path):
    for place in PLACES:
        run(tmp_path / place, place).run()
    memory, file, nowhere = (outcome(tmp_path / place) for place in PLACES)
    assert memory == file and memory["weights"] == nowhere["weights"]
    for kept, anew in zip(memory["epochs"][2:], nowhere["epochs"][2:], strict=True):
        assert kept["executed_flops_t"] < anew["executed_flops_t"]
    assert not (tmp_path / "file" / FILE).exists()


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("place", PLACES)
def test_a_stopped_or_killed_run_ends_the_same(place, tmp_path):
    run(tmp_path / "one", place, epochs=3).run()
    expected = outcome(tmp_path / "one")
    for boundary in (4, 8, 14, 20):
        out = tmp_path / str(boundary)
        run(out, place, epochs=3, should_stop=StopAt(boundary)).run()
        assert (out / FILE).exists() == (place == "file" and boundary > 4)
        with pytest.raises(Killed):
            run(out, place, epochs=3, listener=KillAt(2), checkpoint_every_s=0.1, resume=True).run()
        if place == "file" and boundary == 14:
            damage(out / FILE, 3000)
        run(out, place, epochs=3, resume=True).run()
        assert outcome(out) == expected, boundary
        assert not (out / FILE).exists()


def test_a_resumed_run_reads_the_file_and_computes_the_rest(tmp_path):
    run(tmp_path, "file", plan="last", should_stop=StopAt(5)).run()
    engine = Recording()
    run(tmp_path, "file", plan="last", engine=engine, resume=True).run()
    whole = Recording()
    run(tmp_path / "one", "file", plan="last", engine=whole).run()
    computed, all_of_them = (sum(e.sizes("backbone", "last")) for e in (engine, whole))
    assert all_of_them - 5 * 16 - CHUNK <= computed <= all_of_them - 5 * 16 + CHUNK


def validated(engine):
    """The validation images, whose features the head in closed form would take."""
    return {
        image.tobytes()
        for at, kind, images, _ in engine.calls
        if (at, kind) == ("ridge", "backbone")
        for image in images
    }


@pytest.mark.parametrize(("flips", "epochs"), [(False, 3), (True, 12)])
def test_training_the_head_takes_one_forward_pass_an_image(flips, epochs, tmp_path):
    engine = Recording()
    base = flipping(pack()) if flips else pack()
    result = session(
        tmp_path, base=base, plan="head", engine=engine, gate="off", curriculum="off", epochs=epochs, batch_size=20
    ).run()
    images = result["images"]["train"] * (2 if flips else 1)
    assert images <= sum(engine.sizes("backbone", "head")) <= 1.25 * images
    assert len(engine.images("backbone") - validated(engine)) == images
    flops = [epoch["executed_flops_t"] for epoch in result["epochs"]]
    assert flops[-1] < 0.1 * flops[0]


def test_the_time_of_the_frozen_backbone_is_a_phase(tmp_path):
    result = run(tmp_path, "memory").run()
    assert result["energy"]["phases"]["backbone"]["seconds"] > 0
    assert events(tmp_path)[-1]["event"] == "finished"
