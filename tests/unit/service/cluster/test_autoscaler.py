"""The autoscaler: numbers that were worked out by hand."""

import pytest

from mezzotint.service.cluster.autoscaler import Autoscaler, Scale


def scaler(**fields) -> Autoscaler:
    return Autoscaler(Scale(**{"least": 1, "most": 8, "backlog_s": 10.0, "idle_s": 60.0, **fields}))


@pytest.mark.parametrize(
    ("backlog_s", "wanted"), [(0.0, 1), (5.0, 1), (10.9, 1), (12.0, 2), (45.0, 5), (500.0, 8)]
)
def test_it_goes_up_at_once_to_what_the_backlog_is_worth(backlog_s, wanted):
    assert scaler().want(0.0, backlog_s=backlog_s, requests=100) == wanted


def test_it_goes_down_to_the_most_that_was_wanted_lately():
    one = scaler()
    assert one.want(0.0, backlog_s=60.0, requests=50) == 6
    assert one.want(30.0, backlog_s=25.0, requests=50) == 6
    assert one.want(59.0, backlog_s=0.0, requests=0) == 6
    assert one.want(61.0, backlog_s=0.0, requests=0) == 3  # that of second 30
    assert one.want(91.0, backlog_s=0.0, requests=0) == 1


def test_zero_only_where_nothing_was_under_way_for_as_long():
    one = scaler(least=0)
    assert one.want(0.0, backlog_s=0.0, requests=0) == 0
    assert one.want(1.0, backlog_s=0.001, requests=1) == 1
    assert one.want(60.0, backlog_s=0.0, requests=0) == 1
    assert one.want(62.0, backlog_s=0.0, requests=0) == 0


def test_one_request_has_one_device_however_long_it_takes():
    assert scaler().want(0.0, backlog_s=3600.0, requests=1) == 1
    assert scaler().want(0.0, backlog_s=3600.0, requests=3) == 3
    assert scaler(least=5).want(0.0, backlog_s=3600.0, requests=3) == 5


def test_a_steady_backlog_asks_for_a_steady_number():
    one = scaler()
    wishes = [one.want(float(t), backlog_s=35.0 + t % 3, requests=50) for t in range(300)]
    assert set(wishes) == {4}
