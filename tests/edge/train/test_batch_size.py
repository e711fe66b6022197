"""How many images a training step takes, by what it keeps of each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_sel.edge.memory import FLOOR
from edge_sel.edge.train.sel_stage import STEP_BYTES, SelStage, batch_size, step_hyper
from tests.edge.sessions import pack, session

PLAN = pack().plan("last2")


@pytest.mark.parametrize(
    ("kept", "images"), [(0, 32), (1, 32), (STEP_BYTES // 32, 32), (STEP_BYTES // 23, 16), (STEP_BYTES, FLOOR)]
)
def test_as_many_as_fit_and_no_fewer_than_any_batch_has(kept, images):
    assert batch_size(replace(PLAN, step_bytes=kept), 32) == images
    assert batch_size(replace(PLAN, step_bytes=kept), 4) == 4, "never more than asked for"


def test_statistics_of_a_batch_need_its_images():
    assert batch_size(replace(PLAN, bn_mode="batch", step_bytes=STEP_BYTES), 32) == 32


def test_a_run_takes_such_steps_each_as_much_shorter(tmp_path, monkeypatch):
    taken = []
    train = SelStage._train

    def counted(stage, size, through):
        taken.append(size)
        train(stage, size, through)

    monkeypatch.setattr(SelStage, "_train", counted)
    monkeypatch.setattr("edge_sel.edge.train.sel_stage.step_hyper", lambda *a, share, **k: shares.append(share)
                        or step_hyper(*a, share=share, **k))  # fmt: skip
    manifest, shares = pack().manifest, []
    plans = {**manifest.plans, "last2": replace(PLAN, step_bytes=STEP_BYTES // 8)}
    base = pack().with_manifest(replace(manifest, plans=plans))
    asked = {"plan": "last2", "epochs": 1, "gate": "off", "curriculum": "off", "batch_size": 32}
    result = session(tmp_path, base=base, **asked).run()
    assert sum(taken) == result["epochs"][-1]["trained"] and {*taken} == {8} and {*shares} == {0.25}
    assert result["batch_limit"] is None, "memory was not short"
