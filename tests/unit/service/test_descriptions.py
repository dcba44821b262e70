"""Errors as plain data: everything comes back as it went."""

import pytest

from mezzotint import errors
from mezzotint.service import descriptions

ERRORS = [
    errors.UnknownName("model", "plat", ["plate"], field="model"),
    errors.InvalidRequest("m", field="width", value=3, allowed="multiples"),
    errors.ImageError("m", field="image"),
    errors.QueueFull("m", retry_after_s=4.5),
    errors.OutOfMemory("m"),
    errors.GateRejected("m"),
    errors.ArchiveError("m"),
    errors.WeightsError("m", field="loras"),
    errors.DeadlineExceeded("m"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_come_back_with_what_they_carry(error):
    back = descriptions.read_error(descriptions.describe_error(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    for name in ("field", "value", "allowed", "retry_after_s", "kind", "name", "known"):
        assert getattr(back, name, None) == getattr(error, name, None)


def test_an_unexpected_error_tells_nothing_but_where_to_look():
    back = descriptions.read_error(descriptions.describe_error(RuntimeError("secret path")))
    assert type(back) is errors.WorkFailed
    assert str(back) == "something went wrong inside; the server's log says what"


@pytest.mark.parametrize("kind", ["os", "__builtins__", "nearest_name", "Iterable", ""])
def test_only_errors_of_the_tree_are_ever_made(kind):
    assert type(descriptions.read_error({"type": kind, "message": "m"})) is errors.WorkFailed
