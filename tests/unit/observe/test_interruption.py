"""Work that goes on, piece by piece, while nobody waits."""

import threading

import pytest

from mezzotint.observe.interruption import Interrupted, Study, interruptible


def test_a_study_that_was_left_goes_on_where_it_was_and_does_each_piece_once():
    done, kept = [], []
    somebody_came, begun, goes_on = threading.Event(), threading.Event(), threading.Event()

    def work():
        for piece in range(3):
            if piece == 1:
                begun.set()
                assert goes_on.wait(60)  # one that nothing can stop
            done.append((piece, threading.current_thread().name))
            yield
        return "learnt"

    study = Study(work(), kept.append)
    threading.Thread(target=lambda: begun.wait(60) and somebody_came.set()).start()
    with interruptible(somebody_came), pytest.raises(Interrupted):
        study.study()
    assert [piece for piece, _ in done] == [0]
    assert not kept
    with interruptible(somebody_came), pytest.raises(Interrupted):
        study.study()
    somebody_came.clear()
    goes_on.set()
    with interruptible(somebody_came):
        study.study()
    assert [piece for piece, _ in done] == [0, 1, 2]
    assert kept == ["learnt"]
    assert {name for _, name in done} == {"mezzotint-study"}


def test_who_studies_hears_of_a_piece_that_fails():
    def work():
        yield
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        Study(work(), lambda _: None).study()
