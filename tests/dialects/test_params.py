"""What the operator leaves out of requests or writes into them, and that nothing else changes."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lurus_common.errors import InvalidRequest
from lurus_dialects.params import Param, with_params

ODD = (
    b' {  "model" : "m" ,\n"temperature":1.0,\t"x" : [1e3, 12345678901234567890, "\\u00e9"],'
    b' "messages":[{"temperature":2}] , "top_k":5 } \n'
)


@pytest.mark.parametrize(
    ("params", "expected", "changed"),
    [
        ([], ODD, []),
        ([Param("absent", None)], ODD, []),
        ([Param("temperature", None)], ODD.replace(b'"temperature":1.0,\t', b""), ["temperature"]),
        ([Param("model", None)], ODD.replace(b'"model" : "m" ,\n', b""), ["model"]),
        ([Param("top_k", None)], ODD.replace(b' , "top_k":5', b""), ["top_k"]),
        ([Param("top_k", b"7")], ODD.replace(b":5", b":7"), ["top_k"]),
        ([Param("top_k", b"5")], ODD, []),
        ([Param("seed", b"1e3")], ODD.replace(b":5", b':5,"seed":1e3'), []),
        (
            [Param("top_k", None), Param("messages", None), Param("seed", b"1")],
            ODD[: ODD.index(b' , "top_k"')].replace(b', "messages":[{"temperature":2}]', b',"seed":1 } \n'),
            ["messages", "top_k"],
        ),
    ],
)
def test_other_bytes_stay(params: list[Param], expected: bytes, changed: list[str]) -> None:
    assert with_params(ODD, params) == (expected, changed)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"b":1}'),
        (b'{ "a":1 }', b'{ "b":1 }'),
        (b'{"a":1,"c":2,"a":[3]}', b'{"c":2,"b":1}'),
        (b'{"\\u0061":"}","c":2}', b'{"c":2,"b":1}'),
        (b'{"b":0,"c":2,"b":[0]}', b'{"b":1,"c":2,"b":1}'),
    ],
)
def test_repeats_and_odd_names_are_the_same_member(body: bytes, expected: bytes) -> None:
    assert with_params(body, [Param("a", None), Param("b", b"1")])[0] == expected


def test_too_many_members_are_refused() -> None:
    body = b"{" + b",".join([b'"a":1'] * 1001) + b"}"
    with pytest.raises(InvalidRequest):
        with_params(body, [Param("a", None)])


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from("abcd") | st.text(), _VALUES), st.sampled_from([None, 2, " "]))
def test_it_is_what_a_parser_would_make_of_it(given_body: dict[str, object], indent: int | None) -> None:
    body = json.dumps(given_body, indent=indent).encode()
    edited, _ = with_params(body, [Param("a", None), Param("b", b"null"), Param("c", b'{"x":1}')])
    expected = {name: value for name, value in given_body.items() if name != "a"}
    assert json.loads(edited) == {**expected, "b": None, "c": {"x": 1}}
