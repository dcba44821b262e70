"""``bench/_simulation.py``: a trace replayed against the real router, engine and autoscaler.

That is ``mezzotint.engine`` and ``mezzotint.service.cluster`` on simulated devices.
"""

import pytest
from bench import _simulation
from bench._simulation import Arrival, Device, simulate

from mezzotint.service.cluster.autoscaler import Scale

ARRIVALS = [Arrival(0.1 * k, f"client-{k % 3}", "model", 10) for k in range(12)]


@pytest.mark.parametrize("scale", [None, Scale(least=1, most=3, backlog_s=5.0, idle_s=5.0)])
def test_every_request_of_a_trace_ends_and_work_is_what_devices_did(scale):
    outcome = simulate(ARRIVALS, device=Device(), replicas=2 if scale is None else 1, scale=scale)
    assert sorted(outcome.clients) == sorted(arrival.client for arrival in ARRIVALS)
    assert 0 < outcome.busy_s <= outcome.there_s
    assert all(wait > 0 for wait in outcome.waits_s)


def test_a_picture_that_fails_ends_the_simulation_with_its_error(monkeypatch):
    def encode(*_, **__):
        raise TypeError("an executor of an earlier protocol")

    monkeypatch.setattr(_simulation._Executor, "encode", encode)
    with pytest.raises(TypeError, match="earlier protocol"):
        simulate(ARRIVALS, device=Device(), replicas=2)
