"""How a message travels in Flower's own types."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("flwr", reason="needs edge-sel[fleet]")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("size", [1, 1000, 300_000, 4_000_000])
def test_a_message_comes_as_it_went_in_parts_that_a_slow_link_can_carry(size):
    from edge_sel.flower.runtime import PART, unwrapped, wrapped

    content = os.urandom(size)
    sent = wrapped(content)
    assert len(sent) == -(-size // PART) and unwrapped(sent) == content


def test_messages_of_other_programs_are_none_of_ours():
    from flwr.app import ConfigRecord, RecordDict

    from edge_sel.flower.runtime import KEY, unwrapped, wrapped

    whole = wrapped(os.urandom(600_000))
    gap = RecordDict({name: record for number, (name, record) in enumerate(whole.items()) if number != 1})
    text = RecordDict({f"{KEY}-0000": ConfigRecord({KEY: "text"})})
    for content in (RecordDict(), gap, text, RecordDict({"other": ConfigRecord({KEY: b"x"})})):
        with pytest.raises(ValueError, match="another program"):
            unwrapped(content)


def test_the_app_that_flower_asks_for_holds_no_code():
    import io
    import zipfile

    from flwr.common.config import get_fab_config

    from edge_sel.flower.runtime import fab_bytes

    assert get_fab_config(fab_bytes())["project"]["name"] == "edge-sel" and fab_bytes() == fab_bytes()
    assert zipfile.ZipFile(io.BytesIO(fab_bytes())).namelist() == ["pyproject.toml"]
