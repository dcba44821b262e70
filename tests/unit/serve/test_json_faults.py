"""JSON faults: the field that makes a body no JSON."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.serve.json_faults import find_fault

PAIR = "half of a surrogate pair"


@pytest.mark.parametrize(
    ("body", "field", "what"),
    [
        (b'{"strength": NaN}', "strength", "NaN"),
        (b'{"a": 1, "guidance_scale": {"start": -Infinity}}', "guidance_scale.start", "-Infinity"),
        (b'{"regions": [{"weight": 1}, {"weight": Infinity}]}', "regions[1].weight", "Infinity"),
        (b'{"width": 1e999}', "width", "the number 1e999"),
        (b'{"width": -1e999, "height": NaN}', "width", "the number -1e999"),
        (b'{"prompt": "a\\ud800"}', "prompt", PAIR),
        (b'{"prompt": "\\udc00\\ud800"}', "prompt", PAIR),
        (b'{"prompt": "\xff"}', "prompt", f"bytes that are no UTF-8 or {PAIR}"),
        (b'{"regions": [{"\\ud800": 1}]}', "regions[0]",
         "a field of regions[0] whose name is no Unicode text"),
        (b'{"\xff": 1}', "body", "a field of the body whose name is no Unicode text"),
    ],
)  # fmt: skip
def test_the_first_value_to_blame_is_named(body, field, what):
    fault = find_fault(body)
    assert (fault.field, fault.what) == (field, what)
    assert fault.is_number == what.startswith("the number")


@pytest.mark.parametrize(
    "body",
    [
        b"", b'{"a": ', b'{"a": 1,}', b"[" * 100_000, b'{"a": "\x01"}', b'{"a": nan}',
        '{"prompt": "x"}'.encode("utf-16"), b'{"a": NaN' + b" " * (5 << 20) + b"}",
    ],
)  # fmt: skip
def test_where_the_grammar_is_to_blame_no_field_is(body):
    assert find_fault(body) is None


@given(st.recursive(st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_a_fault_is_found_where_and_only_where_there_is_one(value):
    import json

    def numbers(one):
        return [n for v in one for n in numbers(v)] if isinstance(one, list) else [one]

    bad = any(isinstance(n, float) and not math.isfinite(n) for n in numbers(value))
    assert (find_fault(json.dumps({"a": value}).encode()) is not None) == bad
