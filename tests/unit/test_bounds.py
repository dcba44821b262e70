"""Bounds: each says the same as a check, as a schema and in words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.bounds import Count, Length, Pattern, Range, Unicode, whole_numbers
from mezzotint.errors import InvalidField


@pytest.mark.parametrize(
    ("bound", "value", "words"),
    [
        (Range(1, 8), 9, "x must be 1 to 8, got 9"),
        (Range(1, 8, "px"), 0, "x must be 1 to 8 px, got 0"),
        (Range(0.5, 1000.0), float("nan"), "x must be 0.5 to 1000, got nan"),
        (Range(0, 1), float("inf"), "x must be 0 to 1, got inf"),
        (Length(1, 3), "abcd", "x must be 1 to 3 characters, got 4"),
        (Length(most=3), "abcd", "x must be at most 3 characters, got 4"),
        (Length(1, empty="must name a thing"), "", "x must name a thing"),
        (Count(0, 1), (1, 2), "x must be at most 1, got 2"),
        (Count(1, 2, "pictures"), (), "x must hold 1 to 2 pictures, got 0"),
        (Pattern("^a", "a word with a"), "b", "x must be a word with a, got 'b'"),
        (Pattern("^a$", "an a"), "a\n", "x must be an a, got 'a\\n'"),
        (Unicode(), "ab\0", f"x must be {Unicode().words}, got NUL at character 2"),
        (
            Unicode(),
            "\ud800",
            f"x must be {Unicode().words}, got half of a surrogate pair at character 0",
        ),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_what_came_and_what_is_allowed(bound, value, words):
    with pytest.raises(InvalidField) as caught:
        bound.check("x", value)
    assert (str(caught.value), caught.value.field) == (words, "x")


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        (Range(1, 8), 1),
        (Range(1, 8), 8.0),
        (Range(1, 8), None),
        (Range(1, 8), "a text is none of its business"),
        (Length(1, 3), "abc"),
        (Count(0, 2), (1, 2)),
        (Pattern("a", "a word"), "bab"),
        (Unicode(), "🍎 ü\n\x01"),
        (Unicode(), b"\0"),
    ],
)
def test_ends_and_values_of_other_types_pass(bound, value):
    bound.check("x", value)


def test_an_operator_lowers_the_upper_end_but_never_below_the_lower():
    steps = Range(2, 1000, limit="steps")
    assert steps.schema({"steps": 150}) == {"minimum": 2, "maximum": 150}
    assert steps.schema({"steps": 1}) == {"minimum": 2, "maximum": 2}
    assert steps.schema({"images": 5}) == {"minimum": 2, "maximum": 1000}


@given(high=st.integers(1, 2**70), number=st.integers(0, 2**72), zeros=st.integers(0, 3))
def test_digits_up_to_a_number_are_those_that_the_expression_finds(high, number, zeros):
    text = "0" * zeros + str(number)
    assert (re.fullmatch(whole_numbers(high), text) is not None) == (number <= high)
    found = re.fullmatch(whole_numbers(high, low=1), text) is not None
    assert found == (1 <= number <= high)
