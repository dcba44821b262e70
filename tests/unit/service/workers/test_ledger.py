"""The ledger: sending again, suspects, crash counts, with no process and no clock."""

import random

import msgspec
import pytest

from mezzotint import errors
from mezzotint.service.workers.ledger import Ledger, Stream
from mezzotint.service.workers.messages import (
    Answered,
    CallMethod,
    Cancel,
    StreamEnded,
    StreamRequest,
    write_event,
)
from mezzotint.service.workers.recorder import Recorded
from mezzotint.types import Cancelled, Finished, GenerationResult, Queued, Started


class Worker:
    """A ledger and what it posts."""

    def __init__(self, max_crashes=4):
        self.posted = []
        self.ledger = Ledger(self.posted.append, max_crashes=max_crashes)

    def sent(self):
        """Return and forget the ids of requests, methods and cancels that were posted."""
        names = [
            m.request_id if isinstance(m, StreamRequest)
            else m.method if isinstance(m, CallMethod) else "cancel"
            for m in self.posted
        ]  # fmt: skip
        self.posted.clear()
        return names

    def say(self, stream, event):
        self.ledger.take(write_event(stream.message.call, event))

    def begin_drawing(self, stream):
        self.say(stream, Queued(id=stream.request_id, position=0, eta_s=0.0))
        self.say(stream, Started(id=stream.request_id))


def request(name):
    heard = []
    message = StreamRequest(
        call=0, request="{}", request_id=name, client="", use_cache=True, preview_every=0,
        quiet=False,
    )  # fmt: skip
    return Stream(name, message, heard.append), heard


def done(name):
    return Finished(id=name, result=GenerationResult(id=name, images=()))


def test_what_is_opened_while_the_worker_is_down_is_sent_when_it_begins():
    worker, (stream, heard) = Worker(), request("a")
    worker.ledger.open(stream)
    assert worker.sent() == []
    worker.ledger.begin()
    assert worker.sent() == ["a"]
    worker.say(stream, done("a"))
    assert [type(e) for e in heard] == [Finished]


def test_a_second_run_tells_nothing_twice():
    worker, (stream, heard) = Worker(), request("a")
    worker.ledger.begin()
    worker.ledger.open(stream)
    worker.begin_drawing(stream)
    worker.ledger.lose()
    worker.ledger.begin()
    worker.begin_drawing(stream)
    worker.say(stream, done("a"))
    assert worker.sent() == ["a", "a"]
    assert [type(e) for e in heard] == [Queued, Started, Finished]


def test_after_two_deaths_suspects_go_one_after_the_other_and_the_last_straw_fails_alone():
    worker = Worker(max_crashes=3)
    worker.ledger.begin()
    named = {name: request(name) for name in ("a", "b", "c")}
    for stream, _ in named.values():
        worker.ledger.open(stream)
        worker.begin_drawing(stream)
    for _ in range(2):
        worker.ledger.lose()
        worker.sent()
        worker.ledger.begin()
        for stream, _ in named.values():
            if stream.is_sent:
                worker.begin_drawing(stream)
    assert worker.sent() == ["a"]  # the others wait
    worker.ledger.lose()
    assert isinstance(named["a"][1][-1], errors.WorkFailed)
    assert str(named["a"][1][-1]) == "the engine died 3 times while it ran this request"
    named["a"][0].leave(True)
    worker.ledger.begin()
    assert worker.sent() == ["b"]
    worker.say(named["b"][0], done("b"))
    named["b"][0].leave(True)
    assert worker.sent() == ["c"]


def test_a_loss_without_blame_makes_nobody_a_suspect():
    worker, (stream, heard) = Worker(max_crashes=1), request("a")
    worker.ledger.begin()
    worker.ledger.open(stream)
    worker.begin_drawing(stream)
    for _ in range(5):
        worker.ledger.lose(blame=False)
        worker.ledger.begin()
    assert worker.sent() == ["a"] * 6
    assert stream.crashes == 0
    assert not any(isinstance(e, Exception) for e in heard)


def test_who_waited_at_a_death_is_not_blamed():
    worker, (stream, _) = Worker(), request("a")
    worker.ledger.begin()
    worker.ledger.open(stream)
    worker.say(stream, Queued(id="a", position=3, eta_s=1.0))
    worker.ledger.lose()
    assert stream.crashes == 0


def test_of_those_who_hear_the_ending_alone_who_was_written_down_is_blamed():
    worker = Worker()
    worker.ledger.begin()
    streams = {}
    for name in ("waiting", "planned", "drawn"):
        stream, _ = request(name)
        stream.message = msgspec.structs.replace(stream.message, ending_only=True)
        worker.ledger.open(stream)
        streams[name] = stream
    call = {name: stream.message.call for name, stream in streams.items()}
    written = Recorded(planning=frozenset({call["planned"]}), drawn=frozenset({call["drawn"]}))
    worker.ledger.lose(recorded=written)
    assert {name: s.crashes for name, s in streams.items()} == {
        "waiting": 0, "planned": 1, "drawn": 1,
    }  # fmt: skip
    worker.ledger.begin()
    told = {m.request_id: m.ending_only for m in worker.posted[3:]}
    assert told == {"waiting": True, "planned": False, "drawn": False}
    worker.say(streams["drawn"], Started(id="drawn"))
    worker.ledger.lose(recorded=Recorded(planning=frozenset(), drawn=frozenset()))
    assert [s.crashes for s in streams.values()] == [0, 2, 2]


def test_leaving_early_cancels_and_leaving_at_the_end_does_not():
    worker = Worker()
    worker.ledger.begin()
    (first, _), (second, _) = request("a"), request("b")
    worker.ledger.open(first)
    worker.ledger.open(second)
    first.leave(False)
    worker.say(second, done("b"))
    second.leave(True)
    assert worker.sent() == ["a", "b", "cancel"]
    assert len(worker.ledger) == 0


def test_cancel_is_at_once_where_the_worker_has_nothing():
    worker, (stream, heard) = Worker(), request("a")
    worker.ledger.open(stream)
    assert worker.ledger.cancel("a") is True
    assert heard == [Cancelled(id="a")]
    assert worker.ledger.cancel("a") is False
    worker.ledger.begin()
    worker.ledger.open(request("b")[0])
    assert worker.ledger.cancel("b") is None  # the worker has to be asked


def test_another_ledger_goes_on_and_the_first_one_stops():
    one, other = Worker(), Worker()
    one.ledger.begin()
    other.ledger.begin()
    stream, heard = request("a")
    one.ledger.open(stream)
    one.say(stream, Queued(id="a", position=0, eta_s=0.0))
    call = stream.message.call
    one.ledger.move(stream, other.ledger)
    assert one.posted[-1] == Cancel(call=call)
    assert other.sent() == ["a"]
    one.ledger.take(StreamEnded(call=call))  # what comes late is for nobody
    other.say(stream, done("a"))
    assert [type(e) for e in heard] == [Queued, Finished]
    stream.leave(True)
    assert len(one.ledger) == len(other.ledger) == 0


def test_a_question_is_sent_again_once_and_those_with_data_go_last():
    worker, heard = Worker(), []
    worker.ledger.ask("inspect", {}, heard.append)
    worker.ledger.ask("models", {}, heard.append)
    worker.ledger.begin()
    assert worker.sent() == ["models", "inspect"]
    worker.ledger.lose()
    worker.ledger.begin()
    call = next(m.call for m in worker.posted if m.method == "models")
    worker.ledger.take(Answered(call=call, value=[1]))
    worker.ledger.lose()
    assert heard[0] == [1]
    assert str(heard[1]) == "the engine died 2 times while it answered inspect"
    worker.ledger.begin()
    assert worker.sent() == ["models", "inspect"]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_deaths_moves_and_messages_ends_everything_once(seed):
    """Three workers at random: every request ends exactly once, whatever happens."""
    chance = random.Random(seed)
    workers = [Worker(max_crashes=100) for _ in range(3)]
    requests = {f"r{k}": request(f"r{k}") for k in range(12)}
    for stream, _ in requests.values():
        chance.choice(workers).ledger.open(stream)
    for _ in range(400):
        worker = chance.choice(workers)
        act = chance.random()
        if act < 0.1:
            worker.ledger.lose() if worker.ledger.is_up else worker.ledger.begin()
        elif act < 0.2 and (streams := list(worker.ledger)):
            worker.ledger.move(chance.choice(streams), chance.choice(workers).ledger)
        elif act < 0.25 and not worker.ledger.is_up:
            other = chance.choice(workers)
            for stream in worker.ledger.release():
                other.ledger.open(stream)
        elif worker.ledger.is_up and (there := [s for s in worker.ledger if s.is_sent]):
            stream = chance.choice(there)
            if chance.random() < 0.7:
                worker.begin_drawing(stream)
            else:
                worker.say(stream, done(stream.request_id))
                stream.leave(True)
    for worker in workers:
        worker.ledger.is_up or worker.ledger.begin()
        while left := [s for s in worker.ledger if s.is_sent]:
            worker.say(left[0], done(left[0].request_id))
            left[0].leave(True)
    for _, heard in requests.values():
        assert sum(isinstance(e, Finished) for e in heard) == 1
        assert isinstance(heard[-1], Finished)
        assert sum(isinstance(e, Started) for e in heard) <= 1
