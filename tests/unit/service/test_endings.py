"""Following events: the result, the error, and what becomes of the stream."""

import asyncio

import pytest

from mezzotint import errors
from mezzotint.service.endings import follow
from mezzotint.types import Cancelled, Failed, Finished, GenerationResult, Queued, Started

RESULT = GenerationResult(id="r", images=())


def run(*events, observe=None):
    """Follow these events; return the result and whether the stream was closed."""
    closed = []

    async def stream():
        try:
            for event in events:
                yield event
        finally:
            closed.append(True)

    async def main():
        try:
            return await follow(stream(), observe), closed
        except errors.MezzotintError as error:
            return error, closed

    return asyncio.run(main())


def test_the_result_of_the_good_ending_comes_back_and_the_rest_is_not_read():
    seen = []
    result, closed = run(
        Queued(id="r"), Finished(id="r", result=RESULT), Started(id="r"), observe=seen.append
    )
    assert result is RESULT
    assert seen == [Queued(id="r"), Finished(id="r", result=RESULT)]
    assert closed == [True]


def test_a_failure_is_raised_as_it_is():
    error = errors.QueueFull("no room", retry_after_s=3.0)
    assert run(Started(id="r"), Failed(id="r", error=error)) == (error, [True])


def test_a_cancelled_request_raises_that():
    error, closed = run(Cancelled(id="r"))
    assert (type(error), str(error), closed) == (
        errors.Cancelled, "the request was cancelled", [True],
    )  # fmt: skip


def test_a_stream_without_an_ending_is_a_failure():
    error, closed = run(Started(id="r"))
    assert type(error) is errors.WorkFailed
    assert str(error) == "the request ended without an ending"
    assert closed == [True]


def test_leaving_early_closes_the_stream():
    closed = []

    async def stream():
        try:
            yield Started(id="r")
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await follow(stream())

    asyncio.run(main())
    assert closed == [True]


@pytest.mark.parametrize("ending", [Cancelled(id="r"), Finished(id="r", result=RESULT)])
def test_an_iterator_that_cannot_be_closed_is_followed_too(ending):
    class Events:
        def __init__(self):
            self._left = [ending]

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self._left:
                raise StopAsyncIteration
            return self._left.pop()

    async def main():
        return await follow(Events())

    if isinstance(ending, Cancelled):
        with pytest.raises(errors.Cancelled):
            asyncio.run(main())
    else:
        assert asyncio.run(main()) is RESULT
