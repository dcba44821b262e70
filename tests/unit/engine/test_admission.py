from dataclasses import replace
from math import inf

import pytest

from mezzotint.engine.admission import Turns, admit, due_s, finish_s
from mezzotint.engine.backlog import Backlog, Held, Load
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.state import ImageId
from mezzotint.errors import DeadlineExceeded, OutOfMemory, QueueFull
from mezzotint.planning.costs import Prediction

CONFIG = EngineConfig(max_waiting=10)


def cost(seconds=2.0, peak_bytes=100, measured=True):
    return Prediction(seconds=seconds, model_calls=8, peak_bytes=peak_bytes, measured=measured)


def let_in(load=None, costs=None, **more):
    more.setdefault("budget_bytes", 1000)
    return admit(load or Load(), costs or [cost()], config=CONFIG, **more)


def load_before(held, client, rank):
    backlog = Backlog()
    for number, one in enumerate(held):
        backlog.put(ImageId("r", number), one)
    return backlog.before(client, rank)


def test_an_empty_engine_takes_a_request_and_tells_its_time():
    assert let_in(costs=[cost(), cost()]) == 4.0


def test_a_full_queue_says_when_to_come_back():
    with pytest.raises(QueueFull) as caught:
        let_in(Load(images=10, seconds=30.0, rivals=1, rival_s=30.0))
    assert caught.value.retry_after_s == pytest.approx(3.0)


def test_a_picture_that_never_fits_is_refused_for_its_size():
    with pytest.raises(OutOfMemory, match="ask for a smaller one"):
        let_in(costs=[cost(peak_bytes=1001)])


def test_a_deadline_shorter_than_the_work_is_refused():
    with pytest.raises(DeadlineExceeded, match="the work alone takes 2 s"):
        let_in(deadline_s=1.0)


def test_a_deadline_behind_a_queue_is_refused():
    load = Load(images=3, seconds=60.0, rivals=1, rival_s=60.0)
    with pytest.raises(DeadlineExceeded, match="with what is queued"):
        let_in(load, deadline_s=3.0)


def test_a_deadline_is_not_refused_on_a_guess():
    assert let_in(costs=[cost(measured=False)], deadline_s=1.0) == 2.0


HELD = [
    Held(client="a", seconds=4.0, rank=(0, inf, 10.0)),
    Held(client="a", seconds=1.0, rank=(0, inf, 20.0)),
    Held(client="b", seconds=100.0, rank=(0, inf, 5.0)),
    Held(client="c", seconds=0.5, rank=(0, inf, 5.0)),
    Held(client="c", seconds=8.0, rank=(-1, inf, 5.0)),  # a higher class
    Held(client="c", seconds=16.0, rank=(1, inf, 5.0)),  # a lower one
]


def test_a_newcomer_waits_for_its_share_and_not_for_a_rivals_whole_backlog():
    load = Load(images=5, seconds=100.0, rivals=1, rival_s=100.0)
    assert finish_s(load, 2.0) == 4.0
    assert finish_s(replace(load, rival_s=0.5), 2.0) == 2.5


def test_own_backlog_comes_first():
    assert finish_s(Load(images=5, seconds=10.0, ahead_s=10.0), 2.0) == 12.0


def test_a_load_is_told_apart_by_who_goes_first():
    load = load_before(HELD, "a", (0, inf, 15.0))
    assert load == Load(
        images=6, seconds=129.5, before_s=8.0, ahead_s=4.0, rivals=2, rival_s=100.5, own_images=2
    )
    # 8 of the class above, 4 and 2 of the client's own, 6 of each rival or all it has
    assert finish_s(load, 2.0) == 8.0 + 6.0 + 12.0


def test_a_deadline_goes_before_what_is_due():
    assert load_before(HELD, "a", (0, 12.0, 50.0)).ahead_s == 0.0
    assert load_before(HELD, "a", (0, inf, 50.0)).ahead_s == 5.0


def test_a_short_request_is_due_before_a_long_one_that_has_only_begun():
    assert due_s(100.0, 10.0) > due_s(101.0, 1.0)
    assert due_s(100.0, 10.0) < due_s(119.0, 1.0)


def test_equal_requests_keep_their_order_while_what_they_are_thought_to_take_wavers():
    turns = Turns()
    dear = turns.due_s("a", 100.0, 3.0)
    assert dear == due_s(100.0, 3.0)
    assert turns.due_s("a", 100.1, 0.1) == dear
    assert turns.due_s("b", 100.1, 0.1) == due_s(100.1, 0.1)
    assert turns.due_s("a", 200.0, 0.1) == due_s(200.0, 0.1)
    for kind in range(3000):
        turns.due_s(kind, 0.0, 1.0)
    assert len(turns._latest) <= 1024


def test_a_named_client_leaves_a_share_of_the_queue_to_others():
    config = EngineConfig(max_waiting=8)  # six of them for one client
    held = [Held(client="a", seconds=1.0, rank=(0, inf, 0.0))] * 6
    rank = (0, inf, 0.0)
    cost = Prediction(seconds=1.0, model_calls=1, peak_bytes=1, measured=True)
    with pytest.raises(QueueFull, match="this client has 6 of 8"):
        admit(load_before(held, "a", rank), [cost], config=config, budget_bytes=10)
    assert admit(load_before(held, "b", rank), [cost], config=config, budget_bytes=10) > 0
    nameless = [Held(client="", seconds=1.0, rank=rank)] * 7  # one program, one user
    assert admit(load_before(nameless, "", rank), [cost], config=config, budget_bytes=10) > 0
