"""What server and device say to each other, and what anybody else may send."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.arrays import tensor_bytes
from edge_sel.errors import BadInputError
from edge_sel.flower import messages
from edge_sel.flower.messages import FORMAT, read_reply, read_request, reply_bytes, request_bytes

REQUEST: messages.Request = {
    "format": FORMAT, "task": "update", "round": "r1", "pack": "d" * 64, "kind": "statistics", "plan": "last",
    "seconds": 30.5, "classes": ["a", "b"], "base": "",
}  # fmt: skip
REPLY: messages.Reply = {
    "format": FORMAT,
    "task": "update",
    "round": "r1",
    "packs": ["p"],
    "declined": None,
    "counts": None,
}


@given(st.binary(max_size=300), st.one_of(st.none(), st.binary(min_size=1, max_size=100)))
def test_a_reply_comes_as_it_went(content, signature):
    found = read_reply(reply_bytes(REPLY, content, signature), REQUEST)
    assert (found.content, found.signature, found.header) == (content, signature, REPLY)


def test_a_request_brings_its_candidate():
    weights = {"head.weight": np.ones((2, 3), np.float32)}
    told, found = read_request(request_bytes(REQUEST, weights))
    assert told == REQUEST and found.keys() == weights.keys()
    np.testing.assert_array_equal(found["head.weight"], weights["head.weight"])


@given(st.binary(max_size=200))
def test_garbage_is_told_in_one_line(garbage):
    for read in (read_request, lambda message: read_reply(message, REQUEST)):
        with pytest.raises(BadInputError) as error:
            read(garbage)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"format": "x"}, {"task": "erase"}, {"round": "r2"}, {"round": 3}, {"declined": "x" * 700}, {"counts": {}},
     {"counts": {"images": -1, "right_before": 0, "right": 0, "won": 0, "lost": 0}}],
    ids=str,
)  # fmt: skip
def test_a_reply_that_is_none_is_refused(change):
    with pytest.raises(BadInputError):
        read_reply(reply_bytes({**REPLY, **change}), REQUEST)


@pytest.mark.parametrize(
    "tensors",
    [{}, {"content": np.zeros(2, np.float32)}, {"content": np.zeros(0, np.uint8), "more": np.zeros(1, np.uint8)}],
    ids=str,
)
def test_a_reply_with_other_parts_is_refused(tensors):
    with pytest.raises(BadInputError):
        read_reply(tensor_bytes(tensors, {"reply": json.dumps(REPLY)}), REQUEST)


def test_a_message_too_large_is_not_parsed(monkeypatch):
    monkeypatch.setattr(messages, "MOST_BYTES", 100)
    with pytest.raises(BadInputError, match="more than"):
        read_request(request_bytes(REQUEST))
