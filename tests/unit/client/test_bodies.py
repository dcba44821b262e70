import pytest

import mezzotint as mz
from mezzotint import errors
from mezzotint.client.bodies import read_event, read_failure, read_problem
from mezzotint.serve import errors as door
from mezzotint.serve.dialects.native_bodies import problem_body
from mezzotint.serve.errors import TABLE, DoorError, describe


def make(cls):
    """Return an error of a class, with all that it can carry."""
    if issubclass(cls, errors.UnknownName):
        return cls("scheduler", "eulr", ("euler", "heun"), field="scheduler")
    if issubclass(cls, errors.InvalidRequest | DoorError):
        return cls("too wide", field="width", value=9, allowed="1 to 8")
    if issubclass(cls, errors.ModelError):
        return cls("broken", field="model")
    if issubclass(cls, errors.Overloaded):
        return cls("full", retry_after_s=3.0)
    return cls("no")


@pytest.mark.parametrize("cls", TABLE, ids=lambda cls: cls.__name__)
def test_every_error_of_the_table_comes_back_as_its_class(cls):
    raised = make(cls)
    problem = describe(raised)
    read = read_problem(problem_body(problem), problem.retry_after_s)
    assert type(read) is cls
    assert str(read) == str(raised)
    for name in ("field", "allowed", "kind", "known", "name", "retry_after_s"):
        assert getattr(read, name, None) == getattr(raised, name, None)


def test_a_problem_without_a_class_is_known_by_its_code():
    problem = problem_body(describe(errors.QueueFull("full")))
    del problem["error"]
    assert type(read_problem(problem)) is mz.QueueFull
    assert type(read_problem({"type": "urn:other:odd", "detail": "x"})) is mz.WorkFailed
    assert type(read_problem({"error": "nearest_name", "detail": "x"})) is mz.WorkFailed


def test_an_answer_that_is_no_problem_is_shown():
    error = read_failure(502, {"content-type": "text/html"}, b"<h1>Bad gateway</h1>")
    assert type(error) is mz.WorkFailed
    assert "502" in str(error)
    assert "Bad gateway" in str(error)


def test_retry_after_is_kept():
    body = b'{"type": "urn:mezzotint:error:too_many_requests", "detail": "x"}'
    error = read_failure(429, {"retry-after": "7"}, body)
    assert type(error) is door.TooManyRequests
    assert error.retry_after_s == 7.0


def test_an_unknown_event_is_named():
    with pytest.raises(mz.WorkFailed, match="odd"):
        read_event("odd", {}, "a")
