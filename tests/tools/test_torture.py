"""Runs whose disk fails, or that are killed, come to their end with the same bits; and the faults are real."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import torture
from abuse import faults
from abuse.runs import FAULTY, Fault, Victim, differing_bits, small_field

MIDDLE, LAST = 0.5, 1.0

# Twelve faults, two in each run: where in the first part (a mode, a kind of call, and which of those), and at which
# call in the part that resumes it.
CASES = {
    "killed": (("kill", "write", MIDDLE), Fault("kill", 9)),
    "killed around the result": (("kill", "rename", LAST), Fault("full", 3)),
    "torn": (("torn", "write", MIDDLE), Fault("torn", 6)),
    "power": (("power", "rename", MIDDLE), Fault("power", 12)),
    "power around the result": (("power", "fsync", LAST), Fault("kill", 1)),
    "full": (("full", "write", MIDDLE), Fault("power", 7)),
}


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("torture")
    return Victim(FAULTY, scratch / "runs", small_field(scratch / "images"), None)


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_cut_off_twice_ends_with_the_same_bits(case, victim):
    (mode, kind, where), second = CASES[case]
    numbers = [number for number, (found, _) in enumerate(victim.calls, 1) if found == kind]
    first = Fault(mode, numbers[round(where * (len(numbers) - 1))])
    verdict = victim.with_faults([first, second])
    assert not verdict.lost and verdict.different_bits == 0 and verdict.hit >= 1
    assert len(verdict.parts) >= 2 and verdict.booked_s > 0


def test_a_run_that_was_killed_at_random_ends_with_the_same_bits(victim):
    verdict = victim.killed_at([0.6 * victim.seconds, 0.8 * victim.seconds])
    assert not verdict.lost and verdict.different_bits == 0
    spent_s = sum(part.metered.seconds for part in verdict.parts)
    # Opening takes a part of the time that is metered here, more of it on a busy machine.
    assert 0.25 * spent_s < verdict.booked_s <= spent_s + 0.05, "nothing is booked twice, not even opening it again"


def test_every_kind_of_call_is_seen(victim):
    assert {kind for kind, _ in victim.calls} == set(faults.KINDS)
    touched = {Path(place).name for _, place in victim.calls}
    assert {"run.json", "history.csv", "events.jsonl", "features.cache", "model.onnx", "weights.safetensors"} <= touched
    assert {fault.mode for fault in torture.all_faults(victim)} == set(faults.MODES)


CARELESS = """\
import sys
sys.path.insert(0, sys.argv[1])
from abuse.faults import Disk, install
install(Disk(sys.argv[2], int(sys.argv[3]), ".", "../log"))
import os
from pathlib import Path
with open("forced", "w") as file:
    file.write("forced")
    file.flush()
    os.fsync(file.fileno())
with open("forced", "a") as file:
    file.write(" appended")
Path("new").write_text("whole")
Path("new").replace("renamed")
Path("removed").unlink()
Path("end").write_text("end")
"""


@pytest.mark.parametrize(
    ("mode", "number", "left"),
    [
        ("count", 0, {"forced": "forced appended", "renamed": "whole", "end": "end"}),
        ("kill", 7, {"forced": "forced appended", "renamed": "whole", "end": ""}),
        ("torn", 7, {"forced": "forced appended", "renamed": "whole", "end": "e"}),
        ("power", 7, {"forced": "forced", "renamed": "", "removed": "old"}),
        ("full", 4, {"forced": "forced appended", "new": "", "removed": "old"}),
    ],
)
def test_the_faults_are_what_they_are_called(mode, number, left, tmp_path):
    """Of a program that forces next to nothing onto the disk."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "removed").write_text("old")
    command = [sys.executable, "-c", CARELESS, str(Path(torture.__file__).parent), mode, str(number)]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == {"count": 0, "full": 1}.get(mode, -9), done.stderr
    assert {path.name: path.read_text() for path in here.iterdir()} == left


def test_bits_are_counted():
    assert differing_bits(b"abc", b"abc") == 0
    assert differing_bits(b"\x00\x01", b"\x03\x01") == 2
    assert differing_bits(b"ab", b"abc") == 8
