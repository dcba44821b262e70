"""Events from threads into one loop: in order, none lost, one wake for many."""

import asyncio
import threading

import pytest

from mezzotint.service.dispatch.event_mailbox import EventMailbox


def test_items_of_many_threads_arrive_in_each_threads_order():
    async def main():
        mailbox = EventMailbox(asyncio.get_running_loop())
        queues = [asyncio.Queue() for _ in range(4)]

        def send(k):
            for number in range(3000):
                mailbox.put(queues[k], number)

        threads = [threading.Thread(target=send, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        async with asyncio.timeout(20):
            for queue in queues:
                assert [await queue.get() for _ in range(3000)] == list(range(3000))
        for thread in threads:
            thread.join()

    asyncio.run(main())


def test_a_busy_loop_is_woken_once_for_all_that_came():
    async def main():
        loop = asyncio.get_running_loop()
        calls = []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *a: calls.append(a) or wake(*a)
        mailbox, queue = EventMailbox(loop), asyncio.Queue()
        for number in range(100):
            mailbox.put(queue, number)
        assert len(calls) == 1
        assert [await queue.get() for _ in range(100)] == list(range(100))
        mailbox.put(queue, "later")
        assert len(calls) == 2
        assert await queue.get() == "later"

    asyncio.run(main())


def test_a_closed_loop_raises_each_time():
    loop = asyncio.new_event_loop()
    loop.close()
    mailbox, queue = EventMailbox(loop), None
    for _ in range(2):
        with pytest.raises(RuntimeError):
            mailbox.put(queue, 1)
