import threading

import pytest

from mezzotint.models.stepped_call import SteppedCall


def test_a_call_moves_only_while_it_is_resumed():
    seen = []

    def work(pause):
        for k in range(3):
            seen.append(k)
            pause()
        return "done"

    call = SteppedCall(work)
    assert seen == []
    call.resume()
    assert seen == [0]
    call.resume()
    assert seen == [0, 1]
    assert not call.is_over
    assert call.finish() == "done"
    assert (seen, call.is_over) == ([0, 1, 2], True)


def test_an_error_reaches_whoever_resumes():
    def work(pause):
        pause()
        raise ValueError("no")

    call = SteppedCall(work)
    call.resume()
    with pytest.raises(ValueError, match="no"):
        call.resume()
    with pytest.raises(ValueError, match="no"):
        call.finish()


def test_a_call_that_is_given_up_ends_where_it_stands():
    left, went_on = threading.Event(), []

    def work(pause):
        try:
            pause()
            went_on.append(True)
        except Exception:
            went_on.append(True)
        finally:
            left.set()

    call = SteppedCall(work)
    call.resume()
    call.close()
    assert left.is_set()
    assert went_on == []
    assert call.is_over


def test_a_call_that_never_began_is_closed_without_running():
    ran = []
    call = SteppedCall(lambda pause: ran.append(pause))
    call.close()
    assert ran == []
