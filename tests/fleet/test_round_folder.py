"""A server's rounds: everything is kept, nothing half-merged is published, and whatever kills it, it goes on."""

from __future__ import annotations

import os
import shutil
from functools import cache

import numpy as np
import pytest

from edge_sel.data.builtin import load_relit
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import BadInputError, EdgeSelError, UsageError
from edge_sel.fleet import rounds
from edge_sel.fleet.header import Origin
from edge_sel.fleet.rounds import CANDIDATE, PUBLISHED, ROUND, UPDATES, RoundFolder, Vote, counted
from edge_sel.fleet.statistics import features_of, make_statistics
from edge_sel.fleet.update import sign_update
from edge_sel.pack import writer
from edge_sel.pack.reader import builtin_pack, open_pack
from edge_sel.pack.signatures import make_key, read_private_key, read_trusted_keys

PACK, ENGINE = builtin_pack(), OrtEngine(1)


@cache
def field():
    images = load_relit("field")
    return features_of(PACK, images, ENGINE), images.labels


def content(device, round_name, *, wrong=0):
    rows, (features, labels) = slice(device * 70, device * 70 + 70), field()
    return make_statistics(
        PACK, features[rows], (labels[rows] + wrong) % 10, PACK.manifest.model.classes, Origin(f"n{device}", round_name)
    )


def opened(folder, name="r1", **more):
    return RoundFolder(folder, PACK, name, **more)


def test_a_round_from_updates_to_the_pack_of_the_next(tmp_path):
    with opened(tmp_path) as folder:
        for device in range(3):
            folder.add(content(device, "r1"), None)
        merged = folder.merge(ENGINE, min_devices=3, forget=0.33)
        assert folder.state == "candidate" and len(merged.devices) == 3
        assert folder.publish({"a": Vote(30, 8, 1), "b": Vote(20, 2, 3)})
        folder.next_round("r2")
        assert folder.number == 2 and folder.name == "r2" and folder.pack.digest != PACK.digest
        with pytest.raises(BadInputError, match="another pack"):
            folder.add(content(0, "r2"), None)  # of the pack before
    with opened(tmp_path, "unused") as folder:
        assert (folder.number, folder.name, folder.state) == (2, "r2", "open")
    assert len(list((tmp_path / "round-0001" / UPDATES).glob("*.update"))) == 3


def test_replays_second_updates_and_late_ones_are_refused(tmp_path):
    make_key(tmp_path / "a.key", tmp_path / "a.pub")
    key, keys = read_private_key(tmp_path / "a.key"), read_trusted_keys([tmp_path / "a.pub"])
    with opened(tmp_path / "rounds", devices=keys) as folder:
        first, other, old = content(0, "r1"), content(1, "r1"), content(2, "r0")
        with pytest.raises(BadInputError, match="not signed"):
            folder.add(first, None)
        assert folder.add(first, sign_update(first, key)) and folder.add(first, sign_update(first, key))
        for wrong, why in ((other, "second update"), (old, "another round")):
            with pytest.raises(BadInputError, match=why):
                folder.add(wrong, sign_update(wrong, key))
        with pytest.raises(BadInputError):
            folder.add(other, sign_update(first, key))  # another's signature
        assert len(folder.updates()[0]) == 1
        folder.merge(ENGINE, min_devices=1, forget=0.33)
        with pytest.raises(BadInputError, match="no more"):
            folder.add(first, sign_update(first, key))


def test_too_few_devices_leave_the_round_open(tmp_path):
    with opened(tmp_path) as folder:
        folder.add(content(0, "r1"), None)
        with pytest.raises(BadInputError, match="1 devices took part, 2 are needed"):
            folder.merge(ENGINE, min_devices=2, forget=0.33)
        assert folder.state == "open"
        folder.add(content(1, "r1"), None)
        assert folder.merge(ENGINE, min_devices=2, forget=0.33).objection(0.33) is None


def test_what_devices_find_worse_is_not_published(tmp_path):
    with opened(tmp_path) as folder:
        folder.add(content(0, "r1"), None)
        folder.merge(ENGINE, min_devices=1, forget=0.33)
        assert not folder.publish({"a": Vote(30, 2, 5)})
        assert folder.state == "refused" and "loses 5" in folder.why
        folder.next_round("r2")
        assert folder.pack.digest == PACK.digest and folder.number == 2


def test_what_makes_nonsense_of_the_devices_images_is_no_candidate(tmp_path):
    with opened(tmp_path) as folder:
        rng = np.random.default_rng(0)
        for device in range(3):
            folder.add(content(device, "r1", wrong=rng.integers(0, 10, 70)), None)
        merged = folder.merge(ENGINE, min_devices=2, forget=0.33)
        assert merged.objection(0.33) and folder.state == "refused" and "error" in folder.why
        assert not (folder.place / CANDIDATE).exists()


class _KilledError(BaseException):
    """As if the process had ended here."""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("at", range(9))
def test_killed_before_any_write_it_goes_on_to_the_same_end(tmp_path, monkeypatch, uncut, at):
    writes = {"left": at}

    def counting(function):
        def write(*arguments, **more):
            if writes["left"] == 0:
                raise _KilledError
            writes["left"] -= 1
            return function(*arguments, **more)

        return write

    def whole(folder):
        if folder.state == "open":
            for device in range(2):
                folder.add(content(device, "r1"), None)
            folder.merge(ENGINE, min_devices=2, forget=0.33)
        if folder.state == "candidate":
            folder.publish({"a": Vote(30, 8, 1)})

    place = tmp_path / "rounds"
    with monkeypatch.context() as patch:
        for name in ("write_durably", "write_json"):
            patch.setattr(rounds, name, counting(getattr(rounds, name)))
        patch.setattr(writer, "write_pack", counting(writer.write_pack))
        try:
            with opened(place) as folder:
                whole(folder)
        except _KilledError:
            pass
    with opened(place) as folder:
        if folder.number == 1:
            whole(folder)
    assert open_pack(place / "round-0001" / PUBLISHED).digest == uncut


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("uncut") / "rounds") as folder:
        for device in range(2):
            folder.add(content(device, "r1"), None)
        folder.merge(ENGINE, min_devices=2, forget=0.33)
        folder.publish({"a": Vote(30, 8, 1)})
        return folder.pack.digest


def test_one_process_holds_it_and_of_one_pack(tmp_path):
    with opened(tmp_path), pytest.raises(UsageError, match="holds this fleet"):
        opened(tmp_path)
    digest = (tmp_path / "round-0001" / ROUND).read_text().replace(PACK.digest, "0" * len(PACK.digest))
    (tmp_path / "round-0001" / ROUND).write_text(digest)
    with pytest.raises(UsageError, match="another pack"):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', "x" * 100])
def test_a_damaged_round_is_told_in_one_line(tmp_path, text):
    with opened(tmp_path):
        pass
    (tmp_path / "round-0001" / ROUND).write_text(text)
    with pytest.raises(EdgeSelError) as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


def test_an_update_that_was_damaged_on_the_disk_does_not_count(tmp_path):
    with opened(tmp_path) as folder:
        kept = [folder.add(content(device, "r1"), None) for device in range(2)]
        path = next((folder.place / UPDATES).glob(f"{kept[0].device[:32]}*"))
        os.truncate(path, 1000)
        good, bad = folder.updates()
        assert len(good) == 1 and len(bad) == 1
    shutil.rmtree(tmp_path / "round-0001" / UPDATES)
    with opened(tmp_path) as folder:
        good, bad = folder.updates()
        assert not len(good) and not bad


def test_nobody_outvotes_the_others():
    votes = [Vote(20, 3, 1), Vote(20, 2, 1), Vote(10_000, 0, 9_000), Vote(5, 9, 9), Vote(5, -1, 1)]
    won, lost = counted(votes)
    assert won == 5 and lost <= 2 + 0.9 * 80 + 1
    assert counted([]) == (0, 0)
    assert np.isscalar(won)
