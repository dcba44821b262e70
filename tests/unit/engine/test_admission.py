import pytest

from mezzotint.engine.admission import Load, admit, finish_s
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.costs import Prediction
from mezzotint.errors import DeadlineExceeded, OutOfMemory, QueueFull

CONFIG = EngineConfig(max_waiting=10)


def cost(seconds=2.0, peak_bytes=100, measured=True):
    return Prediction(seconds=seconds, model_calls=8, peak_bytes=peak_bytes, measured=measured)


def let_in(load=None, costs=None, **more):
    more.setdefault("budget_bytes", 1000)
    return admit(load or Load(), costs or [cost()], config=CONFIG, **more)


def test_an_empty_engine_takes_a_request_and_tells_its_time():
    assert let_in(costs=[cost(), cost()]) == 4.0


def test_a_full_queue_says_when_to_come_back():
    with pytest.raises(QueueFull) as caught:
        let_in(Load(images=10, seconds=30.0, clients=1))
    assert caught.value.retry_after_s == pytest.approx(3.0)


def test_a_picture_that_never_fits_is_refused_for_its_size():
    with pytest.raises(OutOfMemory, match="ask for a smaller one"):
        let_in(costs=[cost(peak_bytes=1001)])


def test_a_deadline_shorter_than_the_work_is_refused():
    with pytest.raises(DeadlineExceeded, match="the work alone takes 2 s"):
        let_in(deadline_s=1.0)


def test_a_deadline_behind_a_queue_is_refused():
    load = Load(images=3, seconds=60.0, clients=1)
    with pytest.raises(DeadlineExceeded, match="with what is queued"):
        let_in(load, deadline_s=3.0)


def test_a_deadline_is_not_refused_on_a_guess():
    assert let_in(costs=[cost(measured=False)], deadline_s=1.0) == 2.0


def test_a_newcomer_waits_for_its_share_and_not_for_a_rivals_whole_backlog():
    load = Load(images=5, seconds=100.0, clients=1)
    assert finish_s(load, 2.0) == 4.0


def test_own_backlog_comes_first():
    load = Load(images=5, seconds=10.0, clients=1, own_seconds=10.0)
    assert finish_s(load, 2.0) == 12.0


def test_requests_of_one_client_share_the_device_too():
    """Three rivals of 4, 1 and 2 s and 1 s of one's own: 1 + min(4, 1) + 1 + min(2, 1) s."""
    load = Load(images=3, seconds=7.0, clients=1, own_seconds=7.0, own_requests=(4.0, 1.0, 2.0))
    assert finish_s(load, 1.0) == 4.0
    assert finish_s(load, 10.0) == 17.0
