"""Tests mezzotint.models.backends.row_sizes on networks whose faults are known."""

import pytest
import torch

from mezzotint.models.backends.row_sizes import RowSizes


class Network:
    """Answers twice its rows; in calls of some sizes the last row is wrong."""

    def __init__(self, wrong=()):
        self.calls = []
        self.wrong = wrong
        self.fails = False

    def __call__(self, inputs):
        rows = inputs["x"]
        if self.fails:
            raise RuntimeError("somebody came")
        self.calls.append(len(rows))
        answer = rows * 2
        if len(rows) in self.wrong:
            answer[-1] += 1
        return answer


def sizes_of(network):
    return RowSizes(network, lambda rows: {"x": torch.arange(float(rows))[:, None]})


def test_usual_sizes_are_tried_when_they_are_asked_for_and_then_known():
    network = Network()
    sizes = sizes_of(network)
    assert sizes.largest(1) == 1
    assert network.calls == []
    assert sizes.largest(7) == 4
    assert network.calls == [4, 1, 1, 1, 1]
    assert sizes.largest(5) == 4
    assert sizes.largest(100) == 16
    assert len(network.calls) == 5 + 17


def test_sizes_between_them_are_used_when_somebody_had_the_time_to_try_them():
    network = Network(wrong=(6,))
    sizes = sizes_of(network)
    calls = 0
    while sizes.next_rows:
        expected, before = sizes.next_rows, len(network.calls)
        sizes.advance()
        assert network.calls[before:] == [expected]
        calls += 1
    assert calls == sum(1 + size for size in range(2, 17))
    assert [sizes.largest(rows) for rows in (2, 3, 5, 6, 7, 13, 16, 40)] == [
        2, 3, 5, 5, 7, 13, 16, 16,
    ]  # fmt: skip
    assert len(network.calls) == calls
    sizes.advance()
    assert len(network.calls) == calls


def test_a_size_that_changes_a_bit_is_never_used():
    sizes = sizes_of(Network(wrong=range(2, 17)))
    assert sizes.largest(16) == 1
    while sizes.next_rows:
        sizes.advance()
    assert sizes.largest(16) == 1


def test_a_trial_that_was_left_goes_on_where_it_stood():
    network = Network()
    sizes = sizes_of(network)
    sizes.advance()
    sizes.advance()
    network.fails = True
    with pytest.raises(RuntimeError):
        sizes.advance()
    network.fails = False
    assert sizes.next_rows == 1
    sizes.advance()
    assert network.calls == [2, 1, 1]
    assert sizes.next_rows == 3
