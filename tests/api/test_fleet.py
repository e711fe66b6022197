"""A device's part in a round: its limits count, its validation images stay out, and it judges by these alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from edge_sel.api.fleet import judge_candidate, take_part
from edge_sel.api.round import train_round
from edge_sel.cli.main import cli
from edge_sel.data.builtin import load_relit
from edge_sel.data.folder import load_folder
from edge_sel.data.shifts import write_folder
from edge_sel.data.split import split_by_content
from edge_sel.edge.host import local_minute
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import BadInputError, DataError, UsageError
from edge_sel.fleet.merge import merge_updates, new_pack
from edge_sel.fleet.statistics import features_of, make_statistics
from edge_sel.fleet.update import check_update
from edge_sel.pack.reader import builtin_pack
from edge_sel.pack.signatures import make_key, read_private_key, read_trusted_keys

PACK = builtin_pack()
CLASSES = PACK.manifest.model.classes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet") / "images"
    write_folder(load_relit("field").subset(np.arange(150)), folder)
    return folder


def roles(data):
    images = load_folder(data, PACK.manifest.model.image_size, classes=CLASSES, new_classes="extend")
    return images, split_by_content(images, 0.15, cap=len(images), keep_duplicates=False)


def hours(begin, end):
    now = local_minute()
    return "-".join(f"{(now + by) % 1440 // 60:02}:{(now + by) % 60:02}" for by in (begin, end))


def test_an_update_holds_the_training_images_alone(data, tmp_path):
    make_key(tmp_path / "a.key", tmp_path / "a.pub")
    keys = read_trusted_keys([tmp_path / "a.pub"])
    made = take_part(PACK, data, key=read_private_key(tmp_path / "a.key"), round_name="7", threads=1)
    assert made.declined is None
    found = check_update(made.content, made.signature, PACK, keys, "device")
    images, split = roles(data)
    part = images.subset(split.training)
    enough = part.class_counts() >= 5
    assert found.images == made.images == int(part.class_counts()[enough].sum()) and found.round == "7"
    features = features_of(PACK, part, OrtEngine(1))
    other = make_statistics(PACK, features, part.labels, part.classes, check_origin(found))
    expected = check_update(other, None, PACK, None, "expected")
    np.testing.assert_allclose(found.sums.gram, expected.sums.gram, atol=1e-6)


def check_origin(found):
    from edge_sel.fleet.header import Origin

    return Origin(found.nonce, found.round, found.energy_j, found.energy_source)


def test_limits_decline_before_anything_is_done(data, tmp_path, monkeypatch):
    battery = tmp_path / "sys" / "class" / "power_supply" / "BAT0"
    battery.mkdir(parents=True)
    for name, text in (("type", "Battery"), ("status", "Discharging"), ("capacity", "17")):
        (battery / name).write_text(text)
    monkeypatch.setenv("EDGE_SEL_SYSFS_ROOT", str(tmp_path / "sys"))
    low, quiet = {"EDGE_SEL_BATTERY_FLOOR": "0.2"}, {"EDGE_SEL_QUIET_HOURS": hours(-60, 60)}
    for settings, why in ((low, "battery floor: 17%"), (quiet, "quiet hours"), ({"EDGE_SEL_ON_AC_ONLY": "1"}, "on AC")):
        made = take_part(PACK, data, environ=settings, threads=1)
        assert made.declined.startswith(why) and not made.content and made.images == 0
    assert take_part(PACK, data, environ={"EDGE_SEL_BATTERY_FLOOR": "0.1"}, threads=1).declined is None


def test_it_leaves_early_when_it_is_told_or_the_server_waits_no_longer(data):
    calls = []
    made = take_part(
        PACK, data, threads=1, should_stop=lambda: calls.append(1) or ("SIGTERM" if len(calls) > 3 else None)
    )
    assert made.declined == "left early: SIGTERM" and not made.content
    late = take_part(PACK, data, threads=1, deadline_s=0.02, environ={"EDGE_SEL_DEADLINE_S": "1h"})
    assert "deadline" in late.declined
    delta = take_part(PACK, data, kind="delta", plan="head", threads=1, deadline_s=0.02)
    assert delta.declined


def test_the_command_tells_that_it_declined_and_leaves_what_was_there(data, tmp_path):
    out = tmp_path / "a.update"
    out.write_bytes(b"earlier")
    command = ["fleet", "update", str(PACK.path), "--data", str(data), "--out", str(out), "--json"]
    done = CliRunner().invoke(cli, command, env={"EDGE_SEL_QUIET_HOURS": hours(-60, 60)})
    assert done.exit_code == 75 and "quiet hours" in json.loads(done.stdout)["declined"]
    assert out.read_bytes() == b"earlier"


def test_a_class_of_one_image_does_not_stop_a_delta(data, tmp_path):
    images = load_folder(data, PACK.manifest.model.image_size, classes=CLASSES)
    one = np.flatnonzero(images.labels == 3)[:1]
    write_folder(images.subset(np.sort(np.concatenate([np.flatnonzero(images.labels < 3), one]))), tmp_path / "some")
    made = take_part(PACK, tmp_path / "some", kind="delta", plan="head", epochs=1, threads=1)
    assert made.declined is None and made.left_out == (CLASSES[3],)
    found = check_update(made.content, None, PACK, None, "a")
    assert found.images == made.images
    write_folder(images.subset(np.flatnonzero(images.labels == 1)), tmp_path / "one")
    with pytest.raises(DataError, match="one class only"):
        take_part(PACK, tmp_path / "one", kind="delta", plan="head", threads=1)


def test_what_cannot_be_asked_for(data):
    with pytest.raises(UsageError):
        take_part(PACK, data, kind="delta", privacy=(8.0, 1e-5))
    with pytest.raises(UsageError):
        take_part(PACK, data, kind="delta", plan="none")


def test_a_device_judges_by_its_validation_images(data):
    made = take_part(PACK, data, threads=1)
    merged = merge_updates(PACK, [check_update(made.content, made.signature, PACK, None, "a")], OrtEngine(1))
    found = judge_candidate(PACK, merged.weights, merged.classes, data, threads=1)
    images, split = roles(data)
    assert found.images == len(split.validation)
    assert found.right - found.right_before == found.won - found.lost > 0
    held = images.subset(split.validation)
    features = features_of(PACK, held, OrtEngine(1))
    weight, bias = PACK.linear_head.joined(new_pack(PACK, merged).weights())
    assert found.right == int(((features @ weight.T + bias).argmax(1) == held.labels).sum())
    with pytest.raises(BadInputError):
        judge_candidate(PACK, {"other": np.zeros(3, np.float32)}, CLASSES, data)


def test_a_device_fits_its_own_head_on_top_of_the_fleets(data, tmp_path):
    made = take_part(PACK, data, threads=1)
    merged = merge_updates(PACK, [check_update(made.content, made.signature, PACK, None, "a")], OrtEngine(1))
    new_pack(PACK, merged).save(tmp_path / "next.edgepack")
    done = train_round(tmp_path / "next.edgepack", data, plan="closed_form", threads=1)
    held = set(done.validation)
    images, split = roles(data)
    assert held <= set(images.subset(split.validation).ids)  # none of these was in the update
    assert done.accuracy_after >= done.accuracy_before or not done.shipped
    again = take_part(tmp_path / "next.edgepack", data, threads=1)  # whatever it installs, it contributes
    assert again.declined is None and again.images == made.images
