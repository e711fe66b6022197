"""Labels of several people, from tables and from folders; what they teach, and when a model goes into service."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from edge_sel.edge.classifier import open_classifier
from edge_sel.errors import BadInputError, UsageError
from edge_sel.watch.home import open_home
from edge_sel.watch.labelling import collect_moved, import_labels, settle
from edge_sel.watch.learner import Learner, collect_labels, is_held
from edge_sel.watch.teacher import LEASE_S, Teacher
from tests.watch.conftest import Clock, write_digits


@pytest.fixture
def home(watched, tmp_path):
    shutil.copytree(watched / "home", tmp_path / "home")
    return open_home(tmp_path / "home")


@pytest.fixture
def truth(watched) -> dict[int, str]:
    """The classes of 150 kept images of the field, by their numbers."""
    return {int(number): name for number, name in json.loads((watched / "CLASSES.json").read_text()).items()}


def label_all(home, truth, count, person="somebody") -> None:
    for number in list(truth)[:count]:
        home.records.add_label(number, truth[number], person, 1.0)


def pool_accuracy(home, learner, truth) -> float:
    observer = Learner(home, learner.engine).observer
    numbers = np.array(list(truth))
    rows, there = home.records.rows(numbers.tolist(), observer.computed_by, observer.width)
    said = observer.probabilities(rows[there]).argmax(1)
    return float(np.mean([observer.classes[row] == truth[number] for row, number in zip(said, numbers, strict=True)]))


def test_labels_put_a_better_model_into_service_and_it_can_be_rolled_back(home, learner, truth):
    before = pool_accuracy(home, learner, truth)
    label_all(home, truth, 120)
    candidate = learner.candidate()
    look = learner.decide(candidate)
    assert look.shipped == 1 and home.service() == 1 and "better" in look.why
    assert pool_accuracy(home, learner, truth) > before + 0.1
    served = open_classifier(home.model_folder(1), 1)
    assert served.classes == home.pack.manifest.model.classes
    assert learner.decide(candidate) is None  # another model is in service than the one it was compared with
    assert home.roll_back() == (1, 0) and home.service() == 0
    with pytest.raises(UsageError, match="before this one"):
        home.roll_back()


def test_later_labels_judge_the_model_that_earlier_ones_made(home, learner, truth):
    label_all(home, truth, 80)
    assert learner.decide(learner.candidate()).shipped == 1
    label_all(home, truth, len(truth))
    candidate = learner.candidate()
    # The model in service has learnt 80 of these by heart; it is asked what it would say without each of them.
    assert candidate.evidence.gain < 0.3
    assert learner.observer.number == 1


def test_images_for_validation_are_never_learnt(home, learner, truth):
    label_all(home, truth, len(truth))
    given = collect_labels(home, learner.observer.classes)
    candidate = learner.candidate()
    held = set(given.digests[is_held(given.digests)].tolist())
    assert held and not held & set(candidate.digests.tolist())
    assert len(held) + len(candidate.digests) == len(given.numbers)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(3))
def test_labels_by_chance_put_nothing_into_service(home, learner, truth, seed):
    rng = np.random.default_rng(seed)
    for count in range(20, len(truth), 20):
        for number in list(truth)[count - 20 : count]:
            home.records.add_label(number, str(rng.integers(10)), "somebody", 1.0)
        if (look := learner.decide(learner.candidate())) is not None:
            assert look.shipped is None
    assert home.service() == 0


def test_all_looks_together_may_err_as_often_as_the_level_says(learner):
    spent = [1 - learner._level(number) for number in range(1, 2000)]
    assert sum(spent) <= 0.1 + 1e-12 and all(later < sooner for sooner, later in pairwise(spent))


def test_a_new_class_joins_the_model(home, learner, truth):
    for number in list(truth)[:140]:
        home.records.add_label(number, "mine" if truth[number] == "3" else truth[number], "somebody", 1.0)
    candidate = learner.candidate()
    assert candidate.classes[-1] == "mine" and len(candidate.classes) == 11
    look = learner.decide(candidate)
    assert look.shipped == 1
    assert open_classifier(home.model_folder(1), 1).classes[-1] == "mine"


def test_two_people_disagree_and_do_not_undo_each_other(home, learner, truth):
    first, second, *_ = truth
    records = home.records
    records.add_label(first, "1", "ann", 1.0)
    records.add_label(first, "2", "bob", 2.0)
    records.add_label(second, "5", "bob", 3.0)
    given = collect_labels(home, learner.observer.classes)
    assert given.disputed == (first,) and given.numbers.tolist() == [second]
    assert records.undo("ann") == first
    given = collect_labels(home, learner.observer.classes)
    assert not given.disputed and sorted(given.numbers.tolist()) == sorted([first, second])
    assert records.undo("ann") is None and records.undo("bob") == second and records.undo("bob") == first
    assert not records.labels()


def test_a_person_may_change_their_mind(home, learner, truth):
    number = next(iter(truth))
    for name in ("1", None, "7"):
        home.records.add_label(number, name, "ann", 1.0)
    given = collect_labels(home, learner.observer.classes)
    assert given.classes[given.labels[0]] == "7" and not given.disputed and not given.aside


def test_a_table_labels_by_path_and_tells_what_it_cannot_use(home, learner, truth, tmp_path):
    sources = {line[0]: line[1] for line in home.records.lines()}
    first, second, third, *_ = truth
    file = next(image.file for image in home.records.kept() if image.number == third)
    table = tmp_path / "labels.csv"
    table.write_text(
        f"path,class,other\n{sources[first]},{truth[first]},x\n{sources[second]},,\n{file},8,\n"
        f"/nowhere.png,3,\n{sources[first]},a/b,\n", encoding="utf-8-sig",
    )  # fmt: skip
    found = import_labels(home, table, Clock())
    assert found == (3, 1, 1)
    given = collect_labels(home, learner.observer.classes)
    assert set(given.numbers.tolist()) == {first, third} and given.aside == (second,)
    assert (home.folder / "labelled" / "8").is_dir()
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    for wrong in ("none.csv", "missing.csv"):
        with pytest.raises(BadInputError):
            import_labels(home, tmp_path / wrong, Clock())


def test_a_file_that_a_person_moves_into_a_class_folder_is_labelled(home, learner, truth, tmp_path):
    images = home.records.kept()[:4]
    for image, folder in zip(images, ("labelled/7", "kept/mine", "set_aside", "labelled/7"), strict=True):
        target = home.folder / folder
        target.mkdir(parents=True, exist_ok=True)
        home.image_file(image.file).rename(target / home.image_file(image.file).name)
    write_digits(home.folder / "labelled" / "5", 2, 300)  # pictures of the person's own
    found = collect_moved(home, learner.observer, Clock())
    assert found.labelled == 6
    given = collect_labels(home, learner.observer.classes)
    names = Counter(given.classes[label] for label in given.labels)
    assert names == {"7": 2, "mine": 1, "5": 2} and given.aside == (images[2].number,)
    assert (home.folder / "labelled" / "mine").is_dir()
    assert collect_moved(home, learner.observer, Clock()).labelled == 0


def test_a_labelled_file_that_is_gone_is_no_longer_learnt_from(home, learner, truth):
    number = next(iter(truth))
    home.records.add_label(number, "1", "ann", 1.0)
    image = next(image for image in home.records.kept() if image.number == number)
    settle(home, number, image.file)
    file = next(image.file for image in home.records.kept() if image.number == number)
    assert file.startswith("labelled/1/")
    home.image_file(file).unlink()
    assert collect_moved(home, learner.observer, Clock()).unknown == 1
    assert not collect_labels(home, learner.observer.classes).numbers.size and home.records.counters()["labels"] == 1


def test_old_models_go_but_those_that_can_be_rolled_back_to_stay(home):
    pack, learnt = home.pack, None
    for _ in range(8):
        home.put_in_service(pack.weights(), pack.manifest.model.classes, learnt, {})
    assert home.service() == 8 and home.models() == [4, 5, 6, 7, 8]
    assert home.roll_back() == (8, 7)
    assert home.put_in_service(pack.weights(), pack.manifest.model.classes, learnt, {}) == 9


def test_a_cut_while_a_model_is_written_leaves_the_old_one_in_service(home, monkeypatch):
    from edge_sel.watch import home as homes

    for name in ("write_weights", "write_model", "write_json"):

        def cut(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(homes, name, cut)
            home.put_in_service(home.pack.weights(), home.pack.manifest.model.classes, None, {})
        assert home.service() == 0 and home.pack_in_service().manifest.model.classes
    (home.folder / "service.json").write_text("{")
    assert home._whole(home.service())


# Which image to ask about


def test_people_are_asked_about_different_images_and_a_lease_ends(learner, home, truth):
    clock = Clock()
    teacher = Teacher(learner, clock, np.random.default_rng(0))
    assert teacher.next_image("ann") is None
    teacher.refresh(None)
    first, second = teacher.next_image("ann"), teacher.next_image("bob")
    assert first.number != second.number and teacher.next_image("ann") == first
    teacher.skip(first.number, "ann")
    assert teacher.next_image("ann").number not in (first.number, second.number)
    clock.now_s += 2 * LEASE_S
    assert teacher.next_image("cid") is not None


def test_what_has_a_label_is_not_asked_about_again_and_at_the_end_nothing_is(learner, home, truth):
    teacher = Teacher(learner, Clock(), np.random.default_rng(0))
    teacher.refresh(None)
    asked = []
    while (image := teacher.next_image("ann")) is not None:
        asked.append(image.number)
        home.records.add_label(image.number, truth[image.number], "ann", 1.0)
        teacher.answered(image.number)
    assert sorted(asked) == sorted(truth)
    held = is_held(np.array([image.digest for image in home.records.kept()], np.uint64))
    numbers = [image.number for image in home.records.kept()]
    early = [held[numbers.index(number)] for number in asked[:70]]
    assert 5 <= sum(early) <= 10 + 2  # one of seven, as long as there are others


def test_chosen_images_teach_more_than_others(home, learner, truth):
    """Few labels that the teacher asks for leave the candidate with fewer mistakes on all others than as many by chance."""

    def accuracy(numbers: list[int]) -> float:
        with home.records.changing():
            home.records._ask("DELETE FROM labels")
        for number in numbers:
            home.records.add_label(number, truth[number], "ann", 1.0)
        fresh = Learner(home, learner.engine)
        candidate = fresh.candidate()
        others = np.array([number for number in truth if number not in numbers])
        rows, _ = fresh.rows_of(others)
        said = fresh.observer.probabilities(rows, (candidate.fit.weight, candidate.fit.bias)).argmax(1)
        return float(
            np.mean([candidate.classes[row] == truth[n] for row, n in zip(said, others.tolist(), strict=True)])
        )

    teacher = Teacher(learner, Clock(), np.random.default_rng(0))
    teacher.refresh(None)
    chosen = []
    for _ in range(24):
        image = teacher.next_image("ann")
        chosen.append(image.number)
        home.records.add_label(image.number, truth[image.number], "ann", 1.0)
        teacher.answered(image.number)
        teacher.refresh(learner.candidate())
    by_chance = [list(np.random.default_rng(seed).permutation(list(truth))[:24]) for seed in range(4)]
    assert accuracy(chosen) > np.mean([accuracy([int(number) for number in each]) for each in by_chance])
