"""The link: messages in any pieces, taken where they arrive; endings that reach who follows."""

import asyncio
import random
import socket

import pytest

from mezzotint.service.workers.link import Link
from mezzotint.service.workers.transport import MAX_MESSAGE_BYTES, pack


def linked(body):
    """Run ``body(link, other)`` with a link and the plain socket at its other end."""

    async def main():
        ours, theirs = socket.socketpair()
        link = await Link.over(ours)
        with theirs:
            theirs.setblocking(False)
            async with asyncio.timeout(20):
                await body(link, theirs)
        link.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(3))
def test_messages_in_any_pieces_arrive_whole_and_in_order(seed):
    random_ = random.Random(seed)
    messages = [{"number": k, "data": random_.randbytes(random_.randrange(300))} for k in range(60)]
    stream = b"".join(pack(message) for message in messages)

    async def body(link, other):
        taken = []
        following = asyncio.create_task(link.follow(dict, taken.append))
        loop, start = asyncio.get_running_loop(), 0
        while start < len(stream):
            end = start + random_.choice((1, 3, 8, 20, 500, 5000))
            await loop.sock_sendall(other, stream[start:end])
            await asyncio.sleep(0)
            start = end
        other.shutdown(socket.SHUT_WR)
        await following
        assert taken == messages

    linked(body)


def test_what_is_read_first_does_not_take_what_follows():
    async def body(link, other):
        loop, taken = asyncio.get_running_loop(), []
        await loop.sock_sendall(other, pack({"first": 1}) + pack({"second": 2}))
        assert await link.read(dict) == {"first": 1}
        following = asyncio.create_task(link.follow(dict, taken.append))
        await loop.sock_sendall(other, pack({"third": 3}))
        other.shutdown(socket.SHUT_WR)
        await following
        assert taken == [{"second": 2}, {"third": 3}]

    linked(body)


@pytest.mark.parametrize(
    "bad",
    [(MAX_MESSAGE_BYTES + 1).to_bytes(8, "big"), bytes(pack([1])), bytes(pack({}))[:-1] + b"\xc1"],
)
def test_a_message_that_cannot_be_read_is_raised_to_who_follows(bad):
    async def body(link, other):
        await asyncio.get_running_loop().sock_sendall(other, bad)
        with pytest.raises(ValueError):
            await link.follow(dict, lambda message: None)

    linked(body)


def test_an_error_of_the_taker_is_raised_to_who_follows():
    async def body(link, other):
        await asyncio.get_running_loop().sock_sendall(other, pack({}))
        with pytest.raises(ZeroDivisionError):
            await link.follow(dict, lambda message: 1 / 0)

    linked(body)


def test_reading_from_one_that_is_gone_ends():
    async def body(link, other):
        await asyncio.get_running_loop().sock_sendall(other, bytes(pack({"a": 1}))[:-1])
        other.shutdown(socket.SHUT_RDWR)
        with pytest.raises(asyncio.IncompleteReadError):
            await link.read(dict)
        link.post({"nobody": "hears"})

    linked(body)


def test_who_sends_waits_where_the_other_side_is_slow_to_read():
    async def body(link, other):
        large = {"data": bytes(1 << 22)}
        sending = asyncio.create_task(link.send(large))
        await asyncio.sleep(0.05)
        assert not sending.done()
        loop, left = asyncio.get_running_loop(), len(pack(large))
        while left > 0:
            left -= len(await loop.sock_recv(other, 1 << 16))
        await sending

    linked(body)
