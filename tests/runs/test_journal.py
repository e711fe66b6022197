"""The last whole line counts, wherever the power was cut and whatever else is in the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.runs import journal as module
from edge_sel.runs.journal import Journal, read_journal

ENTRIES = [{"number": number, "x": number / 3} for number in range(4)]


def written(path):
    journal = Journal(path)
    for entry in ENTRIES:
        journal.append(entry, sync=entry["number"] == 2)
    return path.read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return written(tmp_path_factory.mktemp("journal") / "journal")


@given(data=st.data())
def test_cut_anywhere(data, content, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "journal"
    size = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:size] + data.draw(st.sampled_from([b"", b"\0" * 50])))
    whole = content[:size].count(b"\n")
    assert read_journal(path) == (ENTRIES[whole - 1] if whole else None, False)
    Journal(path).append({"more": 1}, sync=True)
    assert read_journal(path) == ({"more": 1}, False)
    assert path.read_bytes().count(b"\n") == whole + 1


@given(data=st.data())
def test_no_flipped_bit_is_believed(data, content, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "journal"
    at = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :])
    found, damaged = read_journal(path)
    assert found in ENTRIES and (damaged or at >= content[:-1].rfind(b"\n"))


def test_withdrawn_it_is_as_it_was(content, tmp_path):
    (tmp_path / "there").write_bytes(content)
    for name in ("there", "new"):
        journal = Journal(tmp_path / name)
        journal.append({"more": 1}, sync=False)
        journal.withdraw()
    assert (tmp_path / "there").read_bytes() == content and not (tmp_path / "new").exists()


def test_it_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 1000)
    journal = Journal(tmp_path / "journal")
    for number in range(200):
        journal.append({"number": number}, sync=False)
        assert read_journal(tmp_path / "journal") == ({"number": number}, False)
    assert (tmp_path / "journal").stat().st_size < 1100


def test_of_a_long_file_only_the_end_is_read(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    for number in range(3000):
        journal.append({"number": number, "fill": "x" * 50}, sync=False)
    assert path.stat().st_size > module.TAIL and read_journal(path)[0]["number"] == 2999
