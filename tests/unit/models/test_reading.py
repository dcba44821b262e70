"""Reading: what cannot be read is an error of the named files, whatever the reader raised."""

import errno

import pytest

from mezzotint.errors import ArchiveError, InvalidRequest, ModelError, WeightsError
from mezzotint.models.reading import reading


@pytest.mark.parametrize(
    "error",
    [TypeError("a secret"), KeyError("x"), ImportError("x"), RecursionError("x"), ValueError("x")],
)
def test_whatever_a_reader_raises_names_the_field_and_repeats_nothing(error):
    said = "model a cannot be read"
    with pytest.raises(WeightsError, match=said) as caught, reading("model a", "model"):
        raise error
    assert caught.value.field == "model"
    assert "secret" not in str(caught.value)
    assert type(error).__name__ not in str(caught.value)


def test_an_error_of_the_system_says_why():
    said = "lora b cannot be read: Permission denied"
    with pytest.raises(WeightsError, match=said), reading("lora b", "loras"):
        raise PermissionError(errno.EACCES, "Permission denied", "/a/path")


@pytest.mark.parametrize(("own", "field"), [(None, "model"), ("loras", "loras")])
def test_an_error_of_files_gets_the_field_that_it_lacks(own, field):
    with pytest.raises(ArchiveError) as caught, reading("model a", "model"):
        raise ArchiveError("torn", field=own)
    assert (str(caught.value), caught.value.field) == ("torn", field)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left"), OSError(errno.EMFILE, "Too many open files"),
        MemoryError(), RuntimeError("CUDA out of memory"), InvalidRequest("wrong", field="width"),
    ],
)  # fmt: skip
def test_what_is_no_fault_of_the_files_stays_what_it_is(error):
    with pytest.raises(type(error)) as caught, reading("model a", "model"):
        raise error
    assert caught.value is error
    assert not isinstance(caught.value, ModelError)
