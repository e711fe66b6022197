"""JSON that anybody may have written: what is refused, with the place and the reason."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel import schema
from edge_sel.schema import Longest, SchemaError, Within, checked, parse_json, read_as


class Inner(TypedDict, total=False):
    share: Annotated[float, Within(0, 1)] | None
    names: Annotated[list[str], Longest(3)]


class _Needed(TypedDict):
    number: int


class Outer(_Needed, total=False):
    inner: Inner
    by_name: dict[str, Inner]
    pair: tuple[int, str]
    which: Literal["a", "b"]
    anything: Any


@dataclass(frozen=True)
class Point:
    x: float
    labels: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is no JSON"),
        (b"\xff", "is no JSON"),
        ("[" * 60_000, "is nested too deeply"),
        ('{"number": 1' + "0" * 400 + "}", "has a number of 401 digits"),
        ('{"number": 1e400}', "has the number 1e400"),
        ('{"number": NaN}', "has the number NaN"),
        ('{"number": 1, "number": 2}', "has a key twice"),
        ("{}", "has no number"),
        ("[1]", "is [1], not an object"),
        ('{"number": 1.0}', "number is 1.0, not int"),
        ('{"number": true}', "number is True, not int"),
        ('{"number": 1, "inner": {"share": 1.5}}', "inner.share is 1.5, not within 0 and 1"),
        ('{"number": 1, "inner": {"share": "x"}}', "inner.share is 'x', not float"),
        ('{"number": 1, "by_name": {"k": {"names": ["a", 2]}}}', "by_name.k.names[1] is 2, not str"),
        ('{"number": 1, "inner": {"names": ["a", "b", "c", "d"]}}', "inner.names is longer than 3"),
        ('{"number": 1, "pair": [1, "a", 2]}', "pair has 3 items, not 2"),
        ('{"number": 1, "which": ["a"]}', "which is ['a'], not one of a, b"),
        (json.dumps({"number": 1, "inner": {"names": ["x" * 70_000]}}), "inner.names[0] is 'xxx"),
    ],
)
def test_what_is_refused(text, expected):
    with pytest.raises(SchemaError) as caught:
        read_as(Outer, text)
    assert str(caught.value).startswith(expected) and len(str(caught.value)) < 220


def test_more_values_than_memory_is_meant_for(monkeypatch):
    monkeypatch.setattr(schema, "MOST_VALUES", 1000)
    assert parse_json("[" + "0," * 900 + "0]")
    with pytest.raises(SchemaError, match="more than 1000 values"):
        parse_json("[" + "[],[]," * 900 + "0]")


def test_unknown_keys_are_left_out_of_a_typed_dict_and_refused_in_a_dataclass():
    assert read_as(Outer, '{"later": [1], "number": 3, "inner": {"share": null, "more": 1}}') == {
        "number": 3, "inner": {"share": None},
    }  # fmt: skip
    assert checked(Point, {"x": 1, "labels": ["a"]}) == Point(1, ("a",))
    for value in ({"x": 1, "z": 2}, {"labels": []}):
        with pytest.raises(SchemaError, match=r"an unknown z|no x"):
            checked(Point, value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(_JSON)
def test_whatever_is_json_is_read_as_it_is_or_refused_in_one_line(value):
    assert parse_json(json.dumps(value)) == value
    try:
        checked(Outer, value)
    except SchemaError as error:
        assert "\n" not in str(error)


@given(st.text() | st.binary())
def test_whatever_is_no_json_is_refused(text):
    try:
        read_as(Outer, text)
    except SchemaError as error:
        assert str(error)
