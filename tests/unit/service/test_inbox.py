"""Messages from many threads: one at a time, in each sender's order, none lost."""

import threading

from mezzotint.service.inbox import Inbox


def test_messages_are_taken_before_put_returns():
    taken = []
    Inbox(taken.append, lambda: None).put(1, 2, 3)
    assert taken == [1, 2, 3]


def test_what_a_message_brings_is_taken_after_it_and_not_inside_it():
    trace = []

    def handle(message):
        trace.append(("begin", message))
        if message == "first":
            inbox.put("second")
        trace.append(("end", message))

    inbox = Inbox(handle, lambda: trace.append("settled"))
    inbox.put("first")
    assert trace == [
        ("begin", "first"), ("end", "first"), ("begin", "second"), ("end", "second"), "settled",
    ]  # fmt: skip


def test_many_threads_lose_nothing_and_never_meet():
    inside, worst, taken = [0], [0], []

    def handle(message):
        inside[0] += 1
        worst[0] = max(worst[0], inside[0])
        taken.append(message)
        inside[0] -= 1

    inbox = Inbox(handle, lambda: None)
    start = threading.Barrier(8)

    def send(sender):
        start.wait()
        for number in range(2000):
            inbox.put((sender, number))

    threads = [threading.Thread(target=send, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == [1]
    assert len(taken) == 16_000
    for sender in range(8):
        assert [n for s, n in taken if s == sender] == list(range(2000))


def test_a_thread_that_finds_it_busy_goes_on_at_once():
    entered, go_on, taken = threading.Event(), threading.Event(), []

    def handle(message):
        taken.append(message)
        if message == "slow":
            entered.set()
            assert go_on.wait(10)

    inbox = Inbox(handle, lambda: None)
    slow = threading.Thread(target=inbox.put, args=("slow",))
    slow.start()
    assert entered.wait(10)
    inbox.put("quick")  # returns although nobody has taken it
    assert taken == ["slow"]
    go_on.set()
    slow.join()
    assert taken == ["slow", "quick"]


def test_an_error_costs_one_message():
    taken = []

    def handle(message):
        if message == 2:
            raise ValueError("a bug")
        taken.append(message)

    inbox = Inbox(handle, lambda: taken.append("settled"))
    inbox.put(1, 2, 3)
    assert taken == [1, 3, "settled"]


def test_after_shutting_messages_are_left_lying():
    taken = []
    inbox = Inbox(taken.append, lambda: None)
    inbox.put(1)
    inbox.shut()
    inbox.put(2, 3)
    assert taken == [1]
    assert inbox.leftovers() == [2, 3]
    assert inbox.leftovers() == []
