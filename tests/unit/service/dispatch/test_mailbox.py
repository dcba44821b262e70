"""Messages from many threads: one at a time, in each sender's order, none lost.

Events from threads into one loop: in order, none lost, one wake for many.
"""

import asyncio
import threading

import pytest

from mezzotint.service.dispatch.mailbox import EventMailbox, Mailbox


class Dispatcher:
    """An mailbox with the thread that does nothing else."""

    def __init__(self, handle):
        self.woken = threading.Semaphore(0)
        self.is_open = True
        self.mailbox = Mailbox(handle, self.woken.release)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while self.is_open:
            self.woken.acquire()
            self.mailbox.work()

    def close(self):
        self.is_open = False
        self.woken.release()
        self.thread.join(10)
        assert not self.thread.is_alive()


def test_a_message_is_taken_before_put_returns():
    taken = []
    mailbox = Mailbox(taken.append, lambda: taken.append("woken"))
    mailbox.put(1)
    mailbox.put(2)
    assert taken == [1, 2]


def test_what_a_message_brings_is_left_to_the_other_thread():
    trace, woken = [], []

    def handle(message):
        trace.append(("begin", message))
        if message == "first":
            mailbox.put("second")
        trace.append(("end", message))

    mailbox = Mailbox(handle, lambda: woken.append(True))
    mailbox.put("first")
    assert trace == [("begin", "first"), ("end", "first")]
    assert woken
    mailbox.work()
    assert trace[2:] == [("begin", "second"), ("end", "second")]


def test_many_threads_lose_nothing_and_never_meet():
    inside, worst, taken = [0], [0], []

    def handle(message):
        inside[0] += 1
        worst[0] = max(worst[0], inside[0])
        taken.append(message)
        inside[0] -= 1

    dispatcher = Dispatcher(handle)
    start = threading.Barrier(8)

    def send(sender):
        start.wait()
        for number in range(2000):
            dispatcher.mailbox.put((sender, number))

    threads = [threading.Thread(target=send, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dispatcher.close()
    assert worst == [1]
    assert len(taken) == 16_000
    for sender in range(8):
        assert [n for s, n in taken if s == sender] == list(range(2000))


def test_whoever_brings_a_message_does_not_work_for_all_others():
    """The event loop's one put() once lasted as long as others went on bringing."""
    taken, woken = [], []

    def handle(message):
        taken.append(message)
        mailbox.bring("one more")  # as fast as they are taken

    mailbox = Mailbox(handle, lambda: woken.append(True))
    for _ in range(100):
        mailbox.bring("before")
    mailbox.put("mine")
    assert len(taken) <= 5
    assert woken


def test_a_thread_that_finds_it_busy_goes_on_at_once():
    entered, go_on, taken = threading.Event(), threading.Event(), []

    def handle(message):
        taken.append(message)
        if message == "slow":
            entered.set()
            assert go_on.wait(10)

    dispatcher = Dispatcher(handle)
    slow = threading.Thread(target=dispatcher.mailbox.put, args=("slow",))
    slow.start()
    assert entered.wait(10)
    dispatcher.mailbox.put("quick")  # returns although nobody has taken it
    assert taken == ["slow"]
    go_on.set()
    slow.join()
    dispatcher.close()
    assert taken == ["slow", "quick"]


def test_an_error_costs_one_message():
    taken = []

    def handle(message):
        if message == 2:
            raise ValueError("a bug")
        taken.append(message)

    mailbox = Mailbox(handle, lambda: None)
    for message in (1, 2, 3):
        mailbox.put(message)
    assert taken == [1, 3]


def test_after_shutting_messages_are_left_lying():
    taken = []
    mailbox = Mailbox(taken.append, lambda: None)
    mailbox.put(1)
    mailbox.shut()
    mailbox.put(2)
    mailbox.bring(3)
    assert taken == [1]
    assert mailbox.leftovers() == [2, 3]
    assert mailbox.leftovers() == []


def test_items_of_many_threads_arrive_in_each_threads_order():
    async def main():
        mailbox = EventMailbox(asyncio.get_running_loop())
        queues = [asyncio.Queue() for _ in range(4)]

        def send(k):
            for number in range(3000):
                mailbox.put(queues[k].put_nowait, number)

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

        def bring(*items):
            thread = threading.Thread(
                target=lambda: [mailbox.put(queue.put_nowait, item) for item in items]
            )
            thread.start()
            thread.join()  # the loop looks at nothing meanwhile

        bring(*range(100))
        assert len(calls) == 1
        assert [await queue.get() for _ in range(100)] == list(range(100))
        bring("later")
        assert len(calls) == 2
        assert await queue.get() == "later"
        mailbox.put(queue.put_nowait, "from the loop itself")
        assert len(calls) == 2
        assert await queue.get() == "from the loop itself"

    asyncio.run(main())


def test_a_closed_loop_raises_each_time():
    loop = asyncio.new_event_loop()
    loop.close()
    mailbox, queue = EventMailbox(loop), asyncio.Queue()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            mailbox.put(queue.put_nowait, 1)
